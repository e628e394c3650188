"""The report's tables."""

from collections import Counter

import numpy as np

from benchmark.measurements.intervals import Estimate, over_seeds, paired
from benchmark.report.baselines import GAPS, baseline_tests, comparison_partners
from benchmark.report.blocks import (
    NONE,
    Table,
    Value,
    count,
    interval,
    megabytes,
    percent,
    points,
    probability,
    runs,
    text,
)
from benchmark.report.comparisons import Difference, adjusted
from benchmark.report.curves import first_at
from benchmark.report.figures import metric_name, settings
from benchmark.report.panels import Model, Panel
from benchmark.report.results import Results
from benchmark.report.slopes import Fit
from benchmark.report.slopes import adjusted as adjusted_slopes
from benchmark.report.statistics import METRICS
from benchmark.sweep.records import BaselineRecord, ChoiceRecord, FinalTest, metric_of


def main_table(panel: Panel, backbone: str, baselines: list[BaselineRecord]) -> Table:
    """Methods in order of exchanged parameters, then the models without a federation."""
    header = ["method", "exchanged parameters", *(f"{metric_name(metric)} (%)" for metric in (*METRICS, "ece"))]
    header += ["wire (MB)", "worst site (%)", "spread (points)", "Pareto front", panel.units]
    models = panel.models(backbone)
    front = pareto_front(panel, models)
    rows = []
    for model in models:
        cells = list(panel.cells[model].values())
        rows.append(
            [
                text(model.method),
                count(panel.exchanged[model]),
                *(percent(panel.estimate(model, metric)) for metric in (*METRICS, "ece")),
                megabytes(sum(cell.wire_bytes for cell in cells) / len(cells)),
                *_fairness([cell.final.test for cell in cells]),
                Value("yes", 1) if model in front else Value("no", 0),
                runs(panel.cells[model], panel.units),
            ]
        )
    for name, by_seed in baseline_tests(panel, backbone, baselines).items():
        tests = list(by_seed.values())
        rows.append(
            [
                text(name),
                count(None),
                *(percent(_over_tests(tests, metric)) for metric in (*METRICS, "ece")),
                megabytes(None),
                *_fairness(tests),
                text(None),
                runs(by_seed, panel.units),
            ]
        )
    return Table(f"{panel.key}, {backbone}: test metrics, mean ± 95 % interval over {panel.units}", header, rows)


def image_table(panel: Panel, backbone: str) -> Table | None:
    """The methods' metrics with intervals that cover other test images too; None where no bootstrap is shown."""
    rows = []
    for model in panel.models(backbone):
        seeds = tuple(panel.cells[model])
        found = [panel.found({model: 1.0}, metric, seeds) for metric in METRICS]
        if any(one and one.over_images for one in found):
            shown = (percent(one.over_images if one else None) for one in found)
            rows.append([text(model.method), *shown, runs(seeds, panel.units)])
    header = ["method", *(f"{metric_name(metric)} (%)" for metric in METRICS), panel.units]
    caption = f"{panel.key}, {backbone}: test metrics, mean ± 95 % interval over {panel.units} and test images"
    return Table(caption, header, rows) if rows else None


def pareto_front(panel: Panel, models: list[Model]) -> set[Model]:
    """Models that no other beats in exchanged parameters or mean balanced accuracy and equals in the other."""
    values = {
        model: (-panel.exchanged[model], estimate.value)
        for model in models
        if (estimate := panel.estimate(model, "balanced_accuracy"))
    }
    return {
        model
        for model, (size, value) in values.items()
        if not any(other != (size, value) and other[0] >= size and other[1] >= value for other in values.values())
    }


def target_table(panel: Panel, backbone: str, metric: str, target: float) -> Table:
    """What it takes until the validation metric first reaches `target`, means over seeds.

    Bytes are of all sites, both directions. Seconds are those of the rounds, as they were simulated.
    """
    rows = []
    for model in panel.models(backbone):
        reached = [first_at(cell, metric, target) for cell in panel.cells[model].values()]
        there = [one for one in reached if one is not None]
        few = f" ({len(there)} of {len(reached)} {panel.units})" if len(there) < len(reached) else ""
        if there:
            rounds, sent, seconds = np.mean([(one.rounds, one.wire_bytes, one.seconds) for one in there], axis=0)
            wire = megabytes(sent)
            values = [
                Value(f"{rounds:.1f}", rounds),
                Value(wire.text + few, sent),
                Value(f"{seconds:.3g}" if seconds < 100 else f"{seconds:,.0f}", seconds),
            ]
        else:
            values = [text(None), Value("not reached", None), text(None)]
        rows.append([text(model.method), *values])
    machines = {
        str(cell.provenance.machine.get("cpu")) for by_seed in panel.cells.values() for cell in by_seed.values()
    }
    caption = (
        f"{panel.key}, {backbone}: what it takes until the validation {metric_name(metric)} reaches "
        f"{100 * target:.1f} %. Seconds are of rounds as simulated on {' and '.join(sorted(machines))}, beside other "
        "runs of the sweep: for a comparison of methods, and not what hosts of their own take"
    )
    return Table(caption, ["method", "rounds", "wire (MB)", "seconds"], rows)


def slope_table(fits: list[Fit]) -> Table:
    """All fits, in points per decade."""
    header = ["data", "domain", "partition", "variant", "backbone", "metric", "slope (points/decade)"]
    header += ["over seeds and methods", "over seeds and images", "p (Holm)", "methods", "seeds or folds"]
    return Table(
        "Slopes against exchanged parameters, with 95 % intervals over seeds or folds",
        header,
        [
            [
                text(one.panel.data),
                text(one.panel.domain),
                text(one.panel.partition),
                text(one.panel.variant),
                text(one.backbone),
                text(metric_name(one.metric)),
                points(one.slope.over_seeds),
                interval(one.over_methods),
                interval(one.slope.over_images),
                probability(p),
                count(len(one.methods)),
                count(len(one.seeds)),
            ]
            for one, p in zip(fits, adjusted_slopes(fits), strict=True)
        ],
    )


def comparison_table(panel: Panel, differences: list[Difference]) -> Table:
    """Differences between initial models, by metric and method."""
    header = ["initial models", "metric", "method", "difference (points)", f"over {panel.units} and images", "p (Holm)"]
    header.append(panel.units)
    rows = []
    for metric in METRICS:
        for one, p in zip(differences, adjusted(differences, metric), strict=True):
            found = one.by_metric[metric]
            rows.append(
                [
                    text(f"{one.first} \N{MINUS SIGN} {one.second}"),
                    text(metric_name(metric)),
                    text(one.method or "all methods"),
                    points(found.over_seeds if found else None),
                    interval(found.over_images if found else None),
                    probability(p),
                    runs(one.seeds, panel.units),
                ]
            )
    caption = f"{panel.key}: differences between initial models, paired, with 95 % intervals over {panel.units}"
    return Table(caption, header, rows)


def tuning_table(choices: list[ChoiceRecord], metric: str) -> Table:
    """What each method tried and what was chosen."""
    rows = []
    for choice in choices:
        chosen = choice.settings
        failed = sum(trial.val is None for trial in choice.trials)
        rates = sorted({trial.learning_rate for trial in choice.trials})
        rows.append(
            [
                text(choice.axes.method),
                count(len(choice.trials)),
                count(failed),
                Value(" ".join(f"{rate:g}" for rate in rates) or NONE, rates[0] if rates else None),
                Value(settings(chosen), chosen.learning_rate) if chosen else Value("none: no trial finished", None),
                text("yes" if choice.edge else "no"),
                Value(f"{100 * chosen.val:.1f}", chosen.val) if chosen and chosen.val is not None else text(None),
            ]
        )
    header = ["method", "trials", "failed", "learning rates", "chosen", "at the edge"]
    header.append(f"validation {metric_name(metric)} (%)")
    caption = (
        "What was chosen on validation data; where that is at the edge of the rates tried, a better one may lie beyond"
    )
    return Table(caption, header, rows)


def failure_table(results: Results) -> Table | None:
    """The runs that failed, with their reasons; None if none did."""
    rows = [[text(run.name), text(run.run_kind), text(run.reason)] for run in results.failures]
    return Table("What failed", ["name", "kind", "reason"], rows) if rows else None


def provenance_table(results: Results) -> Table:
    """Which software and machines made how many of the runs."""
    found: Counter[tuple[str, str, str]] = Counter()
    for run in results.runs:
        origin = run.provenance
        commit = f"{origin.commit[:12] or 'unknown'}{' (with changes)' if origin.dirty else ''}"
        versions = " ".join(f"{name} {value}" for name, value in origin.versions.items())
        found[commit, versions, ", ".join(f"{name} {value}" for name, value in origin.machine.items())] += 1
    rows = [[*map(text, origin), count(runs)] for origin, runs in found.items()]
    return Table("Where the results come from", ["commit", "versions", "machine", "runs"], rows)


def gap_table(panel: Panel, backbone: str, baselines: list[BaselineRecord]) -> Table | None:
    """What each method reaches less what pooled training, the best site alone and the largest method reach.

    Differences are paired by seed or fold; the last column has those that both have, by partner if these differ. Which
    site alone is best is told by the very test images, in its favour.
    None without baselines and with one method.
    """
    others = comparison_partners(panel, backbone, baselines)
    header = ["method", *(f"{metric_name(metric)} less {other}" for other, _ in others for metric in GAPS), panel.units]
    rows = []
    for model in panel.models(backbone):
        common = [runs(panel.cells[model].keys() & of[GAPS[0]].keys(), panel.units).text for _, of in others]
        rows.append(
            [
                text(model.method),
                *(points(paired(panel.tested(model, metric), of[metric])) for _, of in others for metric in GAPS),
                text("; ".join(dict.fromkeys(common))),
            ]
        )
    caption = f"{panel.key}, {backbone}: paired differences in points, with 95 % intervals over common {panel.units}"
    return Table(caption, header, rows) if others else None


def _over_tests(tests: list[FinalTest], metric: str) -> Estimate | None:
    values = [value for test in tests if (value := metric_of(test.pooled, metric)) is not None]
    return over_seeds(values) if len(values) == len(tests) else None


def _fairness(tests: list[FinalTest]) -> list[Value]:
    """Balanced accuracy of the worst site, and the best minus the worst, over seeds."""
    by_site = [[scalars.balanced_accuracy for scalars in test.sites.values()] for test in tests]
    if not all(by_site):
        return [text(None), text(None)]
    return [
        percent(over_seeds([min(one) for one in by_site])),
        percent(over_seeds([max(one) - min(one) for one in by_site])),
    ]
