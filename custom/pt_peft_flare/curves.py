"""The scalars of a run, from the entries of its record: what TensorBoard shows of a round is what `metrics.json` says.

Sites and the federation as a whole (`GLOBAL`) have the same tags, so that a chart shows all of them. The step is the
number of finished rounds.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pt_peft.experiment.sections import Data
from pt_peft_flare.round_file import RoundEntry, Summary
from pt_peft_flare.run_record import METRICS, SPLITS, CrossSiteEntry, StageEntry
from pt_peft_flare.tracking import GLOBAL

MOST_CLASSES = 50
"""With more, no class has a curve of its own: each would be an event and a chart for each site in each round."""

CROSS_SITE_SPLITS = ("val", "test")
"""Of which a cross-site evaluation has something to show: others are of a site's own model in either case."""


class Tag(NamedTuple):
    """What a tag is, in a site's run and in `GLOBAL`; empty where the run does not have it."""

    name: str
    at_site: str
    at_global: str


TAGS = (
    Tag("train/loss", "of the round that ended at this step", "mean over sites"),
    Tag("SPLIT/METRIC", "the aggregate of this step on the site's images", "mean over sites"),
    Tag("SPLIT_pooled/METRIC", "", "all sites' images together, exact, from summed confusion counts"),
    Tag("SPLIT_auroc/CLASS", "area under the ROC curve of a class against the rest", "mean over sites that have it"),
    Tag("SPLIT_cross_site/MODEL", "`select_by` of a model on the site's images at the end", "mean over sites"),
    Tag("time/round_s", "the site's work in the round, seconds", "wall time of the round"),
    Tag("time/evaluation_s", "the site's work in the final evaluation, seconds", "of the slowest site"),
    Tag("bytes/in", "tensors that the site is sent in the round, as they travel", "sum over sites"),
    Tag("bytes/out", "tensors that the site sends", "sum over sites"),
    Tag("privacy/epsilon", "what the job has cost so far", "of the site that has paid most"),
    Tag("privacy/client_epsilon", "", "of the aggregates, where `privacy.client` promises something"),
    Tag("aggregation/share", "its part in the aggregate, 0 to 1; not under `median` and `trimmed_mean`", ""),
    Tag("aggregation/sites", "", "sites whose result is in the aggregate"),
    Tag("aggregation/lora_deviation", "", "how far the means of LoRA's factors are from the mean of their products"),
    Tag("head/penalty", "", "of the classifier that was solved in closed form"),
    Tag("head/temperature", "", "of the same"),
)
"""All scalars. SPLIT is one of `SPLITS`, METRIC of `METRICS`, CLASS of ``data.classes``, MODEL of `CrossSiteEntry`."""


class Points(NamedTuple):
    """Scalars of one source at one step."""

    source: str
    step: int
    values: dict[str, float | None]
    """By tag; None where there is nothing to show."""


def round_curves(entry: RoundEntry, data: Data) -> Iterator[Points]:
    """Scalars of a finished round."""
    start, end, sites = entry["round"], entry["round"] + 1, entry["sites"]
    for site, report in sites.items():
        for split in ("val", "own_val"):
            yield Points(site, start, _site_scalars(split, report[split], data))
        yield Points(
            site,
            end,
            {
                "train/loss": report["train_loss"],
                "time/round_s": report["seconds"],
                "bytes/in": report["bytes_in"],
                "bytes/out": report["bytes_out"],
                "privacy/epsilon": report["epsilon"],
                "aggregation/share": report["share"],
            },
        )
    reports = sites.values()
    yield Points(GLOBAL, start, _global_scalars("val", entry["val_at_start"], reports, data))
    yield Points(
        GLOBAL,
        end,
        {
            "train/loss": mean(report["train_loss"] for report in reports),
            "time/round_s": entry["seconds"],
            "bytes/in": sum(report["bytes_in"] for report in reports),
            "bytes/out": sum(report["bytes_out"] for report in reports),
            "privacy/epsilon": largest(report["epsilon"] for report in reports),
            "privacy/client_epsilon": entry.get("client_epsilon"),
            "aggregation/sites": len(sites),
            "aggregation/lora_deviation": entry.get("lora_deviation"),
        },
    )


def stage_curves(entry: StageEntry) -> Iterator[Points]:
    """Scalars of a finished stage of statistics."""
    spent = {site: report.get("epsilon") for site, report in entry["sites"].items()}
    for source, epsilon in {**spent, GLOBAL: largest(spent.values())}.items():
        yield Points(source, entry["round"], {"privacy/epsilon": epsilon})
    if made := entry["head"]:
        values: dict[str, float | None] = {"head/penalty": made["penalty"], "head/temperature": made["temperature"]}
        yield Points(GLOBAL, entry["round"], values)


def final_curves(final: Mapping[str, Any], rounds: int, data: Data) -> Iterator[Points]:
    """Scalars of the final evaluation, which is the field ``final`` of the record, after so many rounds."""
    reports: dict[str, dict[str, Any]] = final["sites"]
    for site, report in reports.items():
        for split in SPLITS:
            yield Points(site, rounds, _site_scalars(split, report[split], data))
        yield Points(site, rounds, {"time/evaluation_s": report["seconds"]})
    for split in SPLITS:
        yield Points(GLOBAL, rounds, _global_scalars(split, final[split], reports.values(), data))
    yield Points(GLOBAL, rounds, {"time/evaluation_s": largest(report["seconds"] for report in reports.values())})


def cross_site_curves(entry: CrossSiteEntry, rounds: int, metric: str) -> Iterator[Points]:
    """Scalars of a cross-site evaluation after so many rounds: one metric of each model, where it was evaluated."""
    for model, evaluated in entry["models"].items():
        for split in CROSS_SITE_SPLITS:
            tag = f"{split}_cross_site/{model}"
            for site, report in evaluated["sites"].items():
                yield Points(site, rounds, {tag: report[split] and report[split][metric]})
            summary: Summary | None = evaluated[split]
            yield Points(GLOBAL, rounds, {tag: None if summary is None else summary["mean"][metric]})


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of those that are there; None if none is."""
    return max((value for value in values if value is not None), default=None)


def _site_scalars(split: str, metrics: Mapping[str, Any] | None, data: Data) -> dict[str, float | None]:
    """``{"val/loss": 0.4, …}``; empty for a split without images."""
    if metrics is None:
        return {}
    values = {f"{split}/{name}": metrics[name] for name in METRICS}
    return values | dict(zip(_class_tags(split, data), metrics["class_auroc"], strict=False))


def _global_scalars(
    split: str, summary: Summary | None, reports: Iterable[Mapping[str, Any]], data: Data
) -> dict[str, float | None]:
    """Scalars of a split over all sites; empty if none has images in it."""
    if summary is None:
        return {}
    values = {f"{split}/{name}": value for name, value in summary["mean"].items()}
    values |= {f"{split}_pooled/{name}": summary["pooled"].get(name) for name in METRICS}
    areas = [report[split]["class_auroc"] for report in reports if report[split]]
    return values | dict(zip(_class_tags(split, data), map(mean, zip(*areas, strict=True)), strict=False))


def _class_tags(split: str, data: Data) -> list[str]:
    """Tags of the classes' areas; none with two classes that exclude each other, whose areas are both ``auroc``."""
    alike = len(data.classes) == 2 and data.task != "multilabel"
    shown = () if alike or len(data.classes) > MOST_CLASSES else data.classes
    return [f"{split}_auroc/{name}" for name in shown]
