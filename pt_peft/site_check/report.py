"""The report of a site check, as ``check-site --json`` prints it; a part that errors prevented is null."""

from typing import TypedDict

from pydantic import JsonValue

from pt_peft.data.items import SplitCounts, SplitName
from pt_peft.experiment.sections import Fit


class Spread(TypedDict):
    """Sides of the images, pixels."""

    smallest: int
    median: int
    largest: int


class Fitted(TypedDict):
    """What ``data.fit`` makes of the images' area."""

    fit: Fit
    not_square: int
    """Number of images whose sides differ."""
    mean: float
    """Mean over all images of the share of an image's area that is lost (``crop``), of the share of the model's input
    that is filled up (``pad``), or of its longer side's length that is squeezed out (``squash``)."""
    largest: float
    file: str
    """The image with the largest share."""


FITTED: dict[Fit, str] = {
    "pad": "of the model's input is filled up",
    "crop": "of an image's area is cut away",
    "squash": "of the longer side's length is squeezed out",
}
"""What the shares of `Fitted` are of, in words."""


class Looks(TypedDict):
    """Sizes and intensities of the images that can be read."""

    width: Spread
    height: Spread
    fit: Fitted
    modes: dict[str, int]
    """Number of images of each Pillow mode, the most frequent first."""
    stored_range: list[float]
    """Lowest and highest value of all images, as stored."""
    mean: list[float]
    """Mean of each channel as training decodes it, in [0, 1]."""
    std: list[float]
    normalised_mean: list[float]
    """Mean of each channel as the backbone receives it."""
    normalised_std: list[float]


class CacheCost(TypedDict):
    """Space for the decoded images, bytes."""

    folder: str
    bytes: int
    """Size of the site's decoded images."""
    disk_free: int
    limit: int
    """``cache_gb`` of site.json."""
    memory_free: int | None
    """None where the system does not say."""


class PrivacyCost(TypedDict):
    """The privacy budget that the job spends at this site."""

    epsilon: float
    delta: float
    rounds: int
    """Rounds of training with noise for it."""
    releases: int
    """Releases of sums of features with noise."""


class PayloadCost(TypedDict):
    """What the site receives and sends."""

    bytes_in: int
    """Payload that the site receives in the first round, bytes of the encoded tensors."""
    bytes_out: int
    """Payload that the site sends in the first round, bytes of the encoded tensors."""
    statistics_in: int
    """Statistics that the site receives in all stages (`pt_peft.experiment.statistics`), with the models, bytes."""
    statistics_out: int
    """Statistics that the site sends in all stages, bytes."""


class MeasuredCost(TypedDict):
    """What this machine takes; None without timing."""

    statistics_seconds: float | None
    """Of its work in all stages of statistics, without encryption."""
    seconds: float | None
    """Of training and validation in a round."""
    device: str | None
    threads: int | None
    process_memory: int | None
    """Peak resident memory of the process, bytes."""


class RoundCost(PayloadCost, MeasuredCost):
    """What one round costs, and what all statistics do."""

    steps: int


class Report(TypedDict):
    """Everything that the check has found."""

    site: str
    experiment: str
    images: dict[SplitName, SplitCounts] | None
    values: dict[str, dict[str, int]] | None
    """By class, the site's values that mean it, each with the number of its images."""
    looks: Looks | None
    cache: CacheCost | None
    privacy: PrivacyCost | None
    round: RoundCost | None
    errors: list[dict[str, JsonValue]]
    """The fields of `findings.Finding`; errors keep the site from joining."""
    warnings: list[dict[str, JsonValue]]


def empty_report(site: str, experiment: str) -> Report:
    """A report without findings."""
    return {
        "site": site,
        "experiment": experiment,
        "images": None,
        "values": None,
        "looks": None,
        "cache": None,
        "privacy": None,
        "round": None,
        "errors": [],
        "warnings": [],
    }
