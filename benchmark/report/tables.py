"""The report's tables."""

from collections import Counter, defaultdict

from benchmark.report.blocks import NONE, Table, Value, count, megabytes, percent, points, text
from benchmark.report.comparisons import Difference
from benchmark.report.curves import bytes_to_reach
from benchmark.report.figures import metric_name, settings
from benchmark.report.panels import Model, Panel
from benchmark.report.results import Results
from benchmark.report.slopes import Fit
from benchmark.report.statistics import METRICS, Estimate, over_seeds
from benchmark.sweep.result_files import Baseline, Test, Tuning


def main_table(panel: Panel, backbone: str, baselines: list[Baseline]) -> Table:
    """Methods by exchanged parameters, then what is reached without a federation."""
    header = ["method", "exchanged parameters", *(f"{metric_name(metric)} (%)" for metric in METRICS), "wire (MB)"]
    header += ["worst site (%)", "spread (points)", "Pareto front", "seeds"]
    models = panel.models(backbone)
    front = pareto_front(panel, models)
    rows = []
    for model in models:
        cells = list(panel.cells[model].values())
        rows.append(
            [
                text(model.method),
                count(panel.exchanged[model]),
                *(percent(panel.estimate(model, metric)) for metric in METRICS),
                megabytes(sum(cell.wire_bytes for cell in cells) / len(cells)),
                *_fairness([cell.final.test for cell in cells]),
                Value("yes", 1) if model in front else Value("no", 0),
                count(len(cells)),
            ]
        )
    for name, tests in _baseline_rows(panel, backbone, baselines).items():
        rows.append(
            [
                text(name),
                count(None),
                *(percent(_over_tests(tests, metric)) for metric in METRICS),
                megabytes(None),
                *_fairness(tests),
                text(None),
                count(len(tests)),
            ]
        )
    return Table(f"{panel.key}, {backbone}: test metrics, mean ± 95 % interval over seeds", header, rows)


def pareto_front(panel: Panel, models: list[Model]) -> set[Model]:
    """Those that no other model beats in exchanged parameters and mean balanced accuracy, being worse in neither."""
    values = {model: (-panel.exchanged[model], panel.estimate(model, "balanced_accuracy").value) for model in models}
    return {
        model
        for model, (size, value) in values.items()
        if not any(other != (size, value) and other[0] >= size and other[1] >= value for other in values.values())
    }


def target_table(panel: Panel, backbone: str, metric: str, target: float) -> Table:
    """Bytes of all sites, both directions, until the validation metric first reaches `target`, mean over seeds."""
    rows = []
    for model in panel.models(backbone):
        reached = [bytes_to_reach(cell, metric, target) for cell in panel.cells[model].values()]
        spent = [one for one in reached if one is not None]
        value = megabytes(sum(spent) / len(spent)) if spent else Value("not reached", None)
        if spent and len(spent) < len(reached):
            value = Value(f"{value.text} ({len(spent)} of {len(reached)} seeds)", value.order)
        rows.append([text(model.method), value])
    caption = f"{panel.key}, {backbone}: MB until the validation {metric_name(metric)} reaches {100 * target:.1f} %"
    return Table(caption, ["method", "wire (MB)"], rows)


def slope_table(fits: list[Fit]) -> Table:
    """Every fit, in points per decade."""
    header = ["data", "domain", "partition", "aggregation", "backbone"]
    header += [f"{metric_name(metric)} (points/decade)" for metric in METRICS] + ["methods", "seeds"]
    rows = defaultdict(dict)
    for fit in fits:
        rows[fit.panel, fit.backbone][fit.metric] = fit
    return Table(
        "Slopes against exchanged parameters, with 95 % bootstrap intervals",
        header,
        [
            [
                text(panel.data),
                text(panel.domain),
                text(panel.partition),
                text(panel.aggregation),
                text(backbone),
                *(points(by_metric[metric].slope if metric in by_metric else None) for metric in METRICS),
                count(len(next(iter(by_metric.values())).methods)),
                count(len(next(iter(by_metric.values())).seeds)),
            ]
            for (panel, backbone), by_metric in rows.items()
        ],
    )


def comparison_table(panel: Panel, differences: list[Difference]) -> Table:
    """Initial models' differences by method."""
    header = ["initial models", "method", *(f"{metric_name(metric)} (points)" for metric in METRICS), "seeds"]
    rows = [
        [
            text(f"{one.first} − {one.second}"),
            text(one.method or "all methods"),
            *(points(one.by_metric[metric]) for metric in METRICS),
            count(len(one.seeds)),
        ]
        for one in differences
    ]
    return Table(
        f"{panel.key}: differences between initial models, paired, with 95 % bootstrap intervals", header, rows
    )


def tuning_table(entries: list[Tuning], metric: str) -> Table:
    """What every method tried and what was chosen."""
    rows = []
    for entry in entries:
        chosen = entry.trials[entry.chosen] if entry.chosen is not None else None
        failed = sum(trial.status == "failed" for trial in entry.trials)
        rates = sorted({trial.learning_rate for trial in entry.trials})
        rows.append(
            [
                text(entry.axes.method),
                count(entry.budget),
                count(len(entry.trials)),
                count(failed),
                Value(" ".join(f"{rate:g}" for rate in rates) or NONE, rates[0] if rates else None),
                Value(settings(chosen), chosen.learning_rate) if chosen else Value("none: no trial finished", None),
                text("yes" if chosen and len(rates) > 1 and chosen.learning_rate in (rates[0], rates[-1]) else "no"),
                Value(f"{100 * chosen.val:.1f}", chosen.val) if chosen and chosen.val is not None else text(None),
            ]
        )
    header = ["method", "budget (trials)", "run", "failed", "learning rates", "chosen", "at the edge"]
    header.append(f"validation {metric_name(metric)} (%)")
    caption = (
        "What was chosen on validation data; where that is at the edge of the rates tried, a better one may lie beyond"
    )
    return Table(caption, header, rows)


def failure_table(results: Results) -> Table | None:
    """Everything that failed, with its reason; None if nothing did."""
    kinds = [("cell", results.cells), ("baseline", results.baselines), ("tuning trial", results.trials)]
    failed = [(kind, run) for kind, runs in kinds for run in runs if run.status == "failed"]
    rows = [[text(run.name), text(kind), text(run.reason)] for kind, run in failed]
    return Table("What failed", ["name", "kind", "reason"], rows) if rows else None


def provenance_table(results: Results) -> Table:
    """Which software and machines made how many of the result files."""
    runs = (*results.cells, *results.baselines, *results.trials)
    found = Counter()
    for run in runs:
        origin = run.provenance
        versions, machine = origin.get("versions") or {}, origin.get("machine") or {}
        commit = f"{str(origin.get('commit') or 'unknown')[:12]}{' (with changes)' if origin.get('dirty') else ''}"
        host = ", ".join(f"{name} {value}" for name, value in machine.items())
        found[commit, " ".join(f"{name} {value}" for name, value in versions.items()), host] += 1
    rows = [
        [text(commit), text(versions), text(host), count(files)] for (commit, versions, host), files in found.items()
    ]
    return Table("Where the result files come from", ["commit", "versions", "machine", "files"], rows)


def _baseline_rows(panel: Panel, backbone: str, baselines: list[Baseline]) -> dict[str, list[Test]]:
    """Tests by row, one a seed."""
    place = (panel.key.domain, panel.key.data, panel.key.partition, backbone)
    mine = [one for one in baselines if one.rows and _place(one) == place]
    found: dict[str, list[Test]] = defaultdict(list)
    for one in mine:
        for row in one.rows:
            found[row.name].append(row.test)
    return dict(
        sorted(found.items(), key=lambda item: (not item[0].startswith("pooled"), item[0].startswith("majority")))
    )


def _place(baseline: Baseline) -> tuple[str, str, str, str]:
    axes = baseline.axes
    return axes.domain, axes.data, axes.partition, axes.backbone


def _over_tests(tests: list[Test], metric: str) -> Estimate | None:
    values = [test.pooled.value(metric) for test in tests]
    return None if None in values else over_seeds(values)


def _fairness(tests: list[Test]) -> list[Value]:
    """Balanced accuracy of the worst site, and the best minus the worst, over seeds."""
    by_site = [[scalars.balanced_accuracy for scalars in test.sites.values()] for test in tests]
    if not all(by_site):
        return [text(None), text(None)]
    return [
        percent(over_seeds([min(one) for one in by_site])),
        percent(over_seeds([max(one) - min(one) for one in by_site])),
    ]
