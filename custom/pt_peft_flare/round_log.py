"""What a run tells of its rounds while it goes on: curves and images for the receivers, and lines on the console."""

from collections.abc import Iterable, Mapping
from typing import Any

from nvflare.apis.server_engine_spec import ServerEngineSpec

from pt_peft.experiment.experiment import Experiment
from pt_peft_flare.console import console
from pt_peft_flare.curves import (
    CROSS_SITE_SPLITS,
    Points,
    cross_site_curves,
    final_curves,
    largest,
    mean,
    round_curves,
    stage_curves,
)
from pt_peft_flare.round_file import RoundEntry
from pt_peft_flare.run_record import SPLITS, CrossSiteEntry, StageEntry
from pt_peft_flare.table_image import draw_confusion, draw_cross_site
from pt_peft_flare.tracking import GLOBAL, log_image, log_scalars


def log_earlier(
    engine: ServerEngineSpec, experiment: Experiment, stages: Iterable[StageEntry], rounds: Iterable[RoundEntry]
) -> None:
    """Draws the curves of stages and rounds of a job that this one continues: its curves are whole, too."""
    for stage in stages:
        _draw(engine, stage_curves(stage))
    for entry in rounds:
        _draw(engine, round_curves(entry, experiment.data))


def log_round(engine: ServerEngineSpec, experiment: Experiment, entry: RoundEntry) -> None:
    """Tells of a finished round."""
    _draw(engine, round_curves(entry, experiment.data))
    reports = entry["sites"].values()
    loss = mean(report["train_loss"] for report in reports)
    spent = largest(report["epsilon"] for report in reports)
    shown = "" if loss is None else f"  train loss {loss:.3f}"
    shown += "" if spent is None else f"  epsilon of a site at most {spent:.3g}"
    if "client_epsilon" in entry:
        shown += f"  epsilon of the aggregates {entry['client_epsilon']:.3g}"
    shares = {site: report["share"] for site, report in entry["sites"].items() if report["share"] is not None}
    if shares:
        first = max(shares, key=lambda site: shares[site])
        shown += f"  largest share {shares[first]:.0%} ({first})"
    number, rounds = entry["round"] + 1, experiment.federation.rounds
    console.info("round %d/%d  %d sites%s  %.1f s", number, rounds, len(reports), shown, entry["seconds"])


def log_stage(engine: ServerEngineSpec, entry: StageEntry) -> None:
    """Tells of a finished stage of statistics."""
    _draw(engine, stage_curves(entry))
    sites = entry["sites"]
    images = sum(report.get("num_samples", 0) for report in sites.values())
    shown = f"  {images} images" if images else ""
    if (spent := largest(report.get("epsilon") for report in sites.values())) is not None:
        shown += f"  epsilon of a site at most {spent:.3g}"
    name = f"{entry['stage']} at the {entry['when']}"
    console.info("%s  %d sites%s  %.1f s", name, len(sites), shown, entry["seconds"])
    for site, report in sites.items():
        if left_out := report.get("classes_left_out"):
            console.info("%s has too few images of %d class(es), and leaves them out", site, left_out)
    if made := entry["head"]:
        console.info("head by %s, penalty %g, temperature %.3g", made["kind"], made["penalty"], made["temperature"])


def log_final(engine: ServerEngineSpec, experiment: Experiment, final: Mapping[str, Any]) -> None:
    """Tells of the final evaluation.

    Args:
        engine: the server's.
        experiment: what ran.
        final: the field ``final`` of the record.
    """
    _draw(engine, final_curves(final, experiment.federation.rounds, experiment.data))
    for split in SPLITS:
        shown = {site: report[split] for site, report in final["sites"].items() if report[split]}
        if not shown:
            continue
        pooled, mean_of_sites = final[split]["pooled"], final[split]["mean"]
        console.info(
            "%s, %s: balanced accuracy %.3f pooled, %.3f mean over %d sites",
            "the sites' own models" if split.startswith("own_") else "final aggregate",
            split.removeprefix("own_"),
            pooled["balanced_accuracy"],
            mean_of_sites["balanced_accuracy"],
            len(shown),
        )


def log_confusion(engine: ServerEngineSpec, experiment: Experiment, final: Mapping[str, Any]) -> None:
    """Draws the confusion counts of the final evaluation, each site's and all together. The arguments: `log_final`."""
    rounds, data = experiment.federation.rounds, experiment.data
    for split in SPLITS:
        shown = {site: report[split] for site, report in final["sites"].items() if report[split]}
        for source, metrics in ({**shown, GLOBAL: final[split]["pooled"]} if shown else {}).items():
            log_image(engine, source, rounds, f"confusion/{split}", draw_confusion(metrics["confusion"], data))


def log_cross_site(engine: ServerEngineSpec, experiment: Experiment, entry: CrossSiteEntry) -> None:
    """Tells of a cross-site evaluation: curves, and a table of models and sites as an image for each split."""
    rounds, metric, models = experiment.federation.rounds, experiment.select_by, entry["models"]
    _draw(engine, cross_site_curves(entry, rounds, metric))
    sites = sorted({site for one in models.values() for site in (*one["sites"], *one["left_out"])})
    for split in CROSS_SITE_SPLITS:
        reports = [[one["sites"].get(site, {}).get(split) for site in sites] for one in models.values()]
        values = [[report and report[metric] for report in row] for row in reports]
        if any(value is not None for row in values for value in row):
            log_image(engine, GLOBAL, rounds, f"cross_site/{split}", draw_cross_site(values, [*models], sites))
    for name, one in models.items():
        means = {split: one[split]["mean"][metric] for split in CROSS_SITE_SPLITS if one[split]}
        shown = [f"{split} {value:.3f}" for split, value in means.items() if value is not None]
        console.info("cross-site evaluation of %s: %s  %d sites", name, "  ".join(shown), len(one["sites"]))
        for site, reason in one["left_out"].items():
            console.warning("cross-site evaluation: no result of %s for %s: %s", site, name, reason["sentence"])
    for site, reason in entry["left_out"].items():
        console.warning("cross-site evaluation: %s has not sent its own model: %s", site, reason["sentence"])


def _draw(engine: ServerEngineSpec, curves: Iterable[Points]) -> None:
    for points in curves:
        log_scalars(engine, *points)
