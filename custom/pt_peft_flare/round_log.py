"""What a run tells of its rounds while it goes on: scalars for the receivers, and lines on the console."""

from collections.abc import Mapping

from nvflare.apis.server_engine_spec import ServerEngineSpec

from pt_peft.experiment.experiment import Experiment
from pt_peft.federation.reports import EvaluationReport, StatisticsReport
from pt_peft_flare.console import console
from pt_peft_flare.round_file import Summary
from pt_peft_flare.run_record import SPLITS, FinishedRound, FinishedStage
from pt_peft_flare.tracking import SCALARS, log_scalars, split_scalars

GLOBAL = "global"
"""Source of the scalars of the federation as a whole."""


def log_round(
    engine: ServerEngineSpec, experiment: Experiment, finished: FinishedRound, validation: Summary | None
) -> None:
    """Tells of a finished round.

    Args:
        engine: the server's.
        experiment: what runs.
        finished: the round.
        validation: of the model that the round started from.
    """
    number, reports = finished.number, finished.reports
    for site, report in reports.items():
        at_start = split_scalars("val", report.val, experiment.data)
        at_start |= split_scalars("own_val", report.own_val, experiment.data)
        after = {
            "train/loss": report.train_loss,
            "privacy/epsilon": report.epsilon,
            "seconds": report.seconds,
            "bytes/in": finished.bytes_in[site],
            "bytes/out": finished.bytes_out[site],
            "share": finished.shares.get(site),
        }
        log_scalars(engine, site, number, at_start)
        log_scalars(engine, site, number + 1, after)
    losses = [report.train_loss for report in reports.values() if report.train_loss is not None]
    loss = sum(losses) / len(losses) if losses else None
    spent = max((report.epsilon for report in reports.values() if report.epsilon is not None), default=None)
    log_scalars(engine, GLOBAL, number, _summary_scalars("val", validation))
    totals = {"train/loss": loss, "privacy/epsilon": spent, "seconds": finished.seconds, **finished.notes}
    log_scalars(engine, GLOBAL, number + 1, totals)
    shown = "" if loss is None else f"  train loss {loss:.3f}"
    shown += "" if spent is None else f"  epsilon of a site at most {spent:.3g}"
    if "client_epsilon" in finished.notes:
        shown += f"  epsilon of the aggregates {finished.notes['client_epsilon']:.3g}"
    if finished.shares:
        largest = max(finished.shares, key=lambda site: finished.shares[site])
        shown += f"  largest share {finished.shares[largest]:.0%} ({largest})"
    rounds = experiment.federation.rounds
    console.info("round %d/%d  %d sites%s  %.1f s", number + 1, rounds, len(reports), shown, finished.seconds)


def log_stage(engine: ServerEngineSpec, finished: FinishedStage) -> None:
    """Tells of a finished stage of statistics."""
    images = sum(report.num_samples for report in finished.reports.values() if isinstance(report, StatisticsReport))
    counted = f"  {images} images" if images else ""
    spent = {
        site: report.epsilon
        for site, report in finished.reports.items()
        if isinstance(report, StatisticsReport) and report.epsilon is not None
    }
    if spent:
        most = max(spent.values())
        counted += f"  epsilon of a site at most {most:.3g}"
        for source, epsilon in {**spent, GLOBAL: most}.items():
            log_scalars(engine, source, finished.stage.round_number, {"privacy/epsilon": epsilon})
    console.info("%s  %d sites%s  %.1f s", finished.stage, len(finished.reports), counted, finished.seconds)
    for site, report in finished.reports.items():
        if isinstance(report, StatisticsReport) and report.classes_left_out:
            console.info("%s has too few images of %d class(es), and leaves them out", site, report.classes_left_out)
    if made := finished.made:
        console.info("head by %s, penalty %g, temperature %.3g", made["kind"], made["penalty"], made["temperature"])
        scalars = {f"head/{name}": made[name] for name in ("penalty", "temperature")}
        log_scalars(engine, GLOBAL, finished.stage.round_number, scalars)


def log_final(
    engine: ServerEngineSpec,
    experiment: Experiment,
    reports: Mapping[str, EvaluationReport],
    summary: Mapping[str, Summary | None],
) -> None:
    """Tells of the final evaluation.

    Args:
        engine: the server's.
        experiment: what runs.
        reports: of the sites.
        summary: of their metrics, by split.
    """
    rounds = experiment.federation.rounds
    for site, report in reports.items():
        for split in SPLITS:
            log_scalars(engine, site, rounds, split_scalars(split, getattr(report, split), experiment.data))
    for split, metrics in summary.items():
        log_scalars(engine, GLOBAL, rounds, _summary_scalars(split, metrics))
        if metrics:
            console.info(
                "%s, %s: balanced accuracy %.3f pooled, %.3f mean over %d sites",
                "the sites' own models" if split.startswith("own_") else "final aggregate",
                split.removeprefix("own_"),
                metrics["pooled"]["balanced_accuracy"],
                metrics["mean"]["balanced_accuracy"],
                sum(getattr(report, split) is not None for report in reports.values()),
            )


def _summary_scalars(split: str, summary: Summary | None) -> dict[str, float | None]:
    """Scalars of a split over all sites; empty if none has images in it."""
    if summary is None:
        return {}
    values = {f"{split}/mean_{name}": value for name, value in summary["mean"].items()}
    return values | {f"{split}/pooled_{name}": summary["pooled"].get(name) for name in SCALARS}
