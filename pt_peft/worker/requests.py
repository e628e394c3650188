"""What a user asks of a worker: the JSON parts of the requests."""

from typing import Any, NotRequired, TypedDict


class Work(TypedDict):
    """What a worker is for."""

    experiment: dict[str, Any]
    """The `pt_peft.experiment.experiment.Experiment` as JSON."""
    site: dict[str, Any]
    """The `pt_peft.experiment.site.Site` as JSON."""


class Opening(Work):
    """The request ``open``, the first on each connection."""

    name: str
    """The site's name."""
    names: list[str]
    """Names of all sites of the job."""
    run_dir: str
    """Folder where the worker keeps its log and what must outlive it."""
    continues: str | None
    """The same folder of the job that this job continues, if any."""
    threads: int
    """Number of torch's threads."""


class RoundStart(TypedDict):
    """The request ``train``; its tensors are the payload that travelled down."""

    round: int
    """Number of the round, from 0."""
    since: int | None
    """Number of finished rounds whose aggregate the site holds already; None for tensors that no codec has written and
    that hold everything."""
    taken: NotRequired[int | None]
    """Round of the site's last result that the server has taken, -1 if none; None or missing: that of its last
    training."""


class Statistics(RoundStart):
    """The request ``statistics``; its tensors are as for ``train``, with the statistics that travel down."""

    stage: str
    """Name of a `pt_peft.experiment.statistics.Stage`."""


class Evaluation(RoundStart):
    """The request ``evaluate``; its tensors are as for ``train``."""

    splits: list[str]
    """Names of the splits to evaluate on: ``val``, ``test``."""
