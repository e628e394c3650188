"""What a job should be for its sites, from their reports and from what has been measured. Imports no torch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pt_peft import schema
from pt_peft.commands.measured import Interval, Measured
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.prevalence import Count
from pt_peft.experiment.privacy import Privacy, SamplePrivacy
from pt_peft.experiment.sections import SiteName
from pt_peft.presets import override
from pt_peft.privacy.accounting import Steps, epsilon
from pt_peft.privacy.plan import steps_of_a_round
from pt_peft.schema import Strict

SMALL_CELL = 5
"""A class of which a site has fewer training images says little there, and its mean much about single ones."""
IMBALANCED = 3
"""Times as many images in the largest class as in the smallest, from which classes count as imbalanced."""
DIFFERENT = 0.1
"""Share of a site's images that would have to have another class for its mix to be that of all sites, from which sites
count as different."""
CLOSE = 1.0
"""Points of balanced accuracy that the method with fewer parameters may be behind the best one measured."""
FEWEST_RUNS = 3
"""With fewer folds or seeds a difference is a lead, not a finding."""
NOISE = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Noise multipliers whose epsilon is told."""
DELTA = 1e-5
"""delta, where the job names none: 1 / (10 images of the smallest site) if that is less."""
NOT_MEASURED = "no measurement of ours bears it"


class _Reported(BaseModel):
    """A part of what ``check-site --json`` prints; the rest is left out."""

    model_config = ConfigDict(strict=True, frozen=True)


class Counts(_Reported):
    """Images of one split."""

    images: Count
    classes: dict[str, Count]


class RoundCost(_Reported):
    """What a round costs a site, and what the statistics of the whole job do."""

    bytes_in: Count
    bytes_out: Count
    statistics_in: Count
    statistics_out: Count
    statistics_seconds: float | None = Field(ge=0, le=2**53)
    seconds: float | None = Field(ge=0, le=2**53)
    """None, as `statistics_seconds`, without timing."""

    def hours(self, rounds: int) -> float | None:
        """Of the site's work in the whole job; None without timing."""
        if self.seconds is None or self.statistics_seconds is None:
            return None
        return (rounds * self.seconds + self.statistics_seconds) / 3600


class Finding(_Reported):
    """Problems of one kind."""

    kind: str
    count: int


class SiteReport(_Reported):
    """What ``check-site --json`` printed at a site."""

    site: SiteName
    experiment: str
    images: dict[str, Counts] | None
    round: RoundCost | None
    errors: list[Finding]


class SiteAdvice(Strict):
    """What the job means for a site."""

    site: str
    images: int | None
    """For training; null where its check ended before they were counted."""
    different: float | None
    """Total variation distance of its mix of classes from that of all sites together, 0 to 1."""
    small_cells: dict[str, int]
    """Classes of which it has some, but fewer than `SMALL_CELL` training images."""
    absent: list[str]
    """Classes of which it has none."""
    megabytes: float | None
    """Payloads of all rounds and of all statistics, both ways, 10^6 bytes; null where its check ended before."""
    hours: float | None
    """Of its work in them, without what it waits for others; null where check-site did not time a round."""
    errors: list[str]
    """Kinds of errors for which it cannot join."""


class Advised(Strict):
    """One piece of advice."""

    field: str
    """Of the experiment."""
    now: str
    """The job's value."""
    advised: str
    because: str
    measured: list[str]
    """The measurements behind it, each a sentence; empty if there is none."""


class Affordable(Strict):
    """What noise costs at the site with the fewest images, whose epsilon is the largest."""

    noise_multiplier: float
    sample: float | None
    """Epsilon of DP-SGD over all rounds; null without rounds, and where `delta` is no promise."""
    release: float
    """Epsilon of one release of sums, such as a round of statistics."""


class Advice(Strict):
    """The advice for one job."""

    experiment: str
    rounds: int
    sites: list[SiteAdvice]
    classes: dict[str, int]
    """Training images of all sites."""
    advised: list[Advised]
    delta: float
    privacy: list[Affordable]


def read_reports(paths: Sequence[Path], experiment: Experiment) -> list[SiteReport]:
    """The sites' reports, which must be of `experiment`, and one a site.

    Raises:
        UserError: naming the file that is no such report.
    """
    found: dict[str, SiteReport] = {}
    for path in paths:
        report = schema.read(SiteReport, path)
        if report.experiment != experiment.name:
            raise UserError(
                f"{path}: is a report on the experiment '{report.experiment}', not on '{experiment.name}'; check-site "
                "with this job would be right."
            )
        if report.site in found:
            raise UserError(f"{path}: is a second report of the site '{report.site}'; one a site would be right.")
        if report.images and (other := [name for name in _trained(report) if name not in experiment.data.classes]):
            raise UserError(
                f"{path}: counts images of '{other[0]}', which is none of the experiment's classes "
                f"({', '.join(experiment.data.classes)}); check-site with this job would be right."
            )
        found[report.site] = report
    return list(found.values())


def advice(experiment: Experiment, reports: Sequence[SiteReport], measured: Sequence[Measured]) -> Advice:
    """The advice for the job `experiment`.

    Args:
        experiment: the job's.
        reports: of its sites, one or more.
        measured: what may stand behind it.
    """
    total = sum((Counter(_trained(report)) for report in reports), Counter[str]())
    classes = {name: total[name] for name in experiment.data.classes}
    sites = [_site(experiment, report, classes) for report in reports]
    sizes = [site.images for site in sites if site.images]
    least = min(sizes, default=0)
    delta = min(DELTA, 1 / (10 * least)) if least else DELTA
    if experiment.privacy.sample:
        delta = experiment.privacy.sample.delta
    if experiment.federation.rounds:
        objective = _objective(experiment, classes, sites, measured)
        advised = [objective, _method(experiment, objective.advised, measured), _rounds(experiment, measured)]
    else:
        because = (
            "nothing is trained: the classifier is solved from sums of features. Objective and method count once there "
            "are rounds"
        )
        advised = [Advised(field="federation.rounds", now="0", advised="0", because=because, measured=[])]
    return Advice(
        experiment=experiment.name,
        rounds=experiment.federation.rounds,
        sites=sites,
        classes=classes,
        advised=advised,
        delta=delta,
        privacy=[_affordable(experiment, noise, delta, least) for noise in NOISE] if least else [],
    )


def _trained(report: SiteReport) -> Mapping[str, int]:
    return report.images["train"].classes if report.images and "train" in report.images else {}


def _site(experiment: Experiment, report: SiteReport, classes: Mapping[str, int]) -> SiteAdvice:
    own, cost, rounds = _trained(report), report.round, experiment.federation.rounds
    mine, every = sum(own.values()), sum(classes.values())
    different = None
    if mine:
        different = sum(abs(own.get(name, 0) / mine - count / every) for name, count in classes.items()) / 2
    return SiteAdvice(
        site=report.site,
        images=report.images["train"].images if report.images and "train" in report.images else None,
        different=different,
        small_cells={name: count for name, count in own.items() if 0 < count < SMALL_CELL},
        absent=[name for name in classes if not own.get(name)] if own else [],
        megabytes=cost and (rounds * (cost.bytes_in + cost.bytes_out) + cost.statistics_in + cost.statistics_out) / 1e6,
        hours=cost and cost.hours(rounds),
        errors=[one.kind for one in report.errors],
    )


def _objective(
    experiment: Experiment, classes: Mapping[str, int], sites: Sequence[SiteAdvice], measured: Sequence[Measured]
) -> Advised:
    """Advises one objective for all sites where classes are imbalanced or sites differ."""
    field, now = "training.imbalance", experiment.training.imbalance
    present = [count for count in classes.values() if count]
    ratio = max(present) / min(present) if present else 1.0
    apart = max((site.different or 0.0 for site in sites), default=0.0)
    seen = (
        f"the largest class has {ratio:.3g} times the images of the smallest, and of a site's images up to {apart:.0%} "
        "would have to be of other classes for the mix of all sites"
    )
    if ratio < IMBALANCED and apart < DIFFERENT:
        return Advised(field=field, now=now, advised=now, because=f"{seen}: too little to matter", measured=[])
    better = "balanced_softmax"
    try:
        override(experiment, [f"{field}={better}"])
    except UserError as error:
        return Advised(field=field, now=now, advised=now, because=f"{seen}; {better} is refused: {error}", measured=[])
    because = f"{seen}; it has the same optimum at every site, also where a site lacks classes"
    compared = [one for one in measured if one.imbalance == better and _others(one, measured)]
    said = [f"{_reached(one)}; {other.imbalance} {_share(other.balanced_accuracy)}{_difference(one, other)}"
            for one in compared for other in _others(one, measured)]  # fmt: skip
    return Advised(field=field, now=now, advised=better, because=because, measured=said)


def _others(one: Measured, measured: Sequence[Measured]) -> list[Measured]:
    """The same as `one` with another objective and, by the names of the suite's variants, nothing else that differs."""
    return [other for other in measured if _place(other) == _place(one) and other.method == one.method
            and other.imbalance != one.imbalance and _is_plain(one) and _is_plain(other)]  # fmt: skip


def _is_plain(one: Measured) -> bool:
    return one.variant in (one.imbalance, "default")


def _method(experiment: Experiment, imbalance: str, measured: Sequence[Measured]) -> Advised:
    """Advises the method of fewest parameters among those close to the best one measured."""
    now = experiment.method.name
    places: dict[tuple[object, ...], list[Measured]] = {}
    for one in measured:
        if one.imbalance == imbalance:
            places.setdefault((*_place(one), one.variant), []).append(one)
    compared = max(places.values(), key=len) if places else []
    if len({one.method for one in compared}) < 2:
        because = f"no two methods were measured with training.imbalance '{imbalance}'"
        return Advised(field="method.name", now=now, advised=now, because=because, measured=[])
    best = max(one.balanced_accuracy.mean for one in compared)
    close = [one for one in compared if 100 * (best - one.balanced_accuracy.mean) <= CLOSE]
    chosen = min(close, key=lambda one: one.exchanged_parameters)
    because = f"the fewest parameters among the methods within {CLOSE:g} point of the best one measured"
    said = [f"{_reached(one)}, {one.exchanged_parameters:,} numbers a round{_less(one)}" for one in compared]
    return Advised(field="method.name", now=now, advised=chosen.method, because=because, measured=said)


def _rounds(experiment: Experiment, measured: Sequence[Measured]) -> Advised:
    """Advises the rounds of what was measured."""
    now = str(experiment.federation.rounds)
    of_method = [one for one in measured if one.method == experiment.method.name]
    if not of_method:
        because = f"'{experiment.method.name}' was measured with no number of rounds"
        return Advised(field="federation.rounds", now=now, advised=now, because=because, measured=[])
    most = max(of_method, key=lambda one: (one.balanced_accuracy.runs, one.rounds))
    because = "that many were measured; what more or fewer give was not"
    said = [f"{_reached(most)} after {most.rounds} rounds of {most.image_size} px images{_less(most)}"]
    return Advised(field="federation.rounds", now=now, advised=str(most.rounds), because=because, measured=said)


def _place(one: Measured) -> tuple[object, ...]:
    return one.suite, one.data, one.partition, one.backbone, one.rounds, one.image_size


def _reached(one: Measured) -> str:
    runs = one.balanced_accuracy.runs
    units = ("fold" if one.folds else "seed") + "s" * (runs > 1)
    lead = "" if runs >= FEWEST_RUNS else " (a lead, not a finding)"
    where = f"{one.data}, {one.partition}, {one.backbone}, {one.rounds} rounds, {runs} {units}{lead}"
    return f"{where}: {one.method} with {one.imbalance} {_share(one.balanced_accuracy)} of balanced accuracy"


def _share(found: Interval) -> str:
    return f"{found.mean:.3f}" + ("" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]")


def _difference(one: Measured, other: Measured) -> str:
    found = one.less.get(f"variant {other.variant}")
    return f", a difference of {_points(found)}" if found else ""


def _less(one: Measured) -> str:
    found = one.less.get("pooled")
    return f"; less pooled training {_points(found)}" if found else ""


def _points(found: Interval) -> str:
    ends = "" if found.low is None else f" [{found.low:+.1f}, {found.high:+.1f}]"
    return f"{found.mean:+.1f}{ends} points"


def _affordable(experiment: Experiment, noise: float, delta: float, images: int) -> Affordable:
    sample = SamplePrivacy(noise_multiplier=noise, max_grad_norm=1.0, delta=delta)
    private = experiment.model_copy(update={"privacy": Privacy(sample=sample)})
    spent = None
    if experiment.federation.rounds and delta * images < 1:
        spent = epsilon(experiment.federation.rounds * steps_of_a_round(private, images), delta)
    release = epsilon([Steps(rate=1.0, noise_multiplier=noise, count=1)], delta)
    return Affordable(noise_multiplier=noise, sample=spent, release=release)


def lines(found: Advice) -> Iterator[str]:
    """The advice as text."""
    images = sum(site.images or 0 for site in found.sites)
    what = f"{found.rounds} round(s), {len(found.sites)} site(s), {images:,} training images"
    yield f"experiment {found.experiment}, {what}"
    yield from _table(
        ["site", "images", "other mix", "MB in all", "hours in all", f"classes below {SMALL_CELL} images", "absent"],
        [
            [
                site.site,
                _or_unknown(site.images, ","),
                _or_unknown(site.different, ".0%"),
                _or_unknown(site.megabytes, ",.1f"),
                _or_unknown(site.hours, ",.2f"),
                ", ".join(f"{name} {count}" for name, count in site.small_cells.items()) or "none",
                ", ".join(site.absent) or "none",
            ]
            for site in found.sites
        ],
    )
    yield from _notes(found)
    for one in found.advised:
        yield f"{one.field}: {one.advised}" + (f" (the job has {one.now})" if one.advised != one.now else " (as it is)")
        yield f"    because {one.because}"
        yield from (f"    measured: {said}" for said in one.measured or [NOT_MEASURED])
    yield from _privacy_lines(found)


def _notes(found: Advice) -> Iterator[str]:
    for site in found.sites:
        if site.errors:
            yield f"{site.site}: cannot join as it is ({', '.join(site.errors)})"
    sized = [(site.images, site.site) for site in found.sites if site.images]
    if len(sized) > 1:
        yield f"smallest site: {min(sized)[1]}, {min(sized)[0]:,} images; largest: {max(sized)[1]}, {max(sized)[0]:,}"
    timed = [(site.hours, site.site) for site in found.sites if site.hours is not None]
    if timed:
        yield f"slowest site: {max(timed)[1]}; each round waits for it, {max(timed)[0]:,.2f} hours in all"
    if untimed := [site.site for site in found.sites if site.hours is None]:
        yield f"not timed, so that hours are not known: {', '.join(untimed)}"
    if nowhere := [name for name, count in found.classes.items() if not count]:
        yield f"no site has a training image of: {', '.join(nowhere)}"
    if any(site.small_cells for site in found.sites):
        yield (
            f"classes below {SMALL_CELL} images at a site: rounds of statistics leave them out there by default, and "
            "the site's metrics of them say little"
        )


def _privacy_lines(found: Advice) -> Iterator[str]:
    if not found.privacy:
        return
    yield f"privacy of single images at the smallest site, epsilon at delta {found.delta:.2g}, by noise multiplier"
    sample = f"DP-SGD, {found.rounds} round(s)"
    rows = [
        {
            "noise multiplier": f"{one.noise_multiplier:g}",
            sample: _or_unknown(one.sample, ".3g"),
            "one release of sums": f"{one.release:.3g}",
        }
        for one in found.privacy
    ]
    columns = [name for name in rows[0] if found.rounds or name != sample]
    yield from _table(columns, [[row[name] for name in columns] for row in rows])
    yield f"    what the noise costs in accuracy: {NOT_MEASURED}"


def _or_unknown(value: float | None, form: str) -> str:
    return "not known" if value is None else format(value, form)


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
