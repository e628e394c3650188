"""What suites have found, in the form that ``pt-peft advise`` reads."""

from collections.abc import Mapping
from typing import Any, cast

from benchmark.measurements.intervals import Estimate, over_seeds, paired
from benchmark.report.baselines import comparison_partners
from benchmark.report.panels import Model, Panel, panels
from benchmark.report.results import Results
from pt_peft.commands.measured import Interval, Measured

VARIANT = "variant "
"""Before the name of another variant in `Measured.less`."""


def summary(results: Results) -> list[Measured]:
    """A line for each panel and model of a suite's results."""
    found = panels(results, 0)
    return [_line(results, panel, model, found) for panel in found for model in panel.cells]


def _line(results: Results, panel: Panel, model: Model, others: list[Panel]) -> Measured:
    cells = list(panel.cells[model].values())
    experiment = cast(Mapping[str, Any], cells[0].experiment)
    key = panel.key
    mine = panel.tested(model, "balanced_accuracy")
    partners = {
        name: of["balanced_accuracy"] for name, of in comparison_partners(panel, model.backbone, results.baselines)
    }
    partners.pop(model.method, None)
    for other in others:
        if other.key != key and other.key._replace(variant=key.variant) == key and model in other.cells:
            partners[VARIANT + other.key.variant] = other.tested(model, "balanced_accuracy")
    less = {
        name: _interval(difference, len(mine.keys() & those.keys()))
        for name, those in partners.items()
        if (difference := paired(mine, those))
    }
    balanced = over_seeds([cell.final.test.pooled.balanced_accuracy for cell in cells])
    auroc = panel.estimate(model, "auroc")
    return Measured(
        suite=results.name,
        data=key.data,
        partition=key.partition,
        backbone=model.backbone,
        variant=key.variant,
        method=model.method,
        imbalance=experiment["training"]["imbalance"],
        rounds=experiment["federation"]["rounds"],
        image_size=experiment["backbone"]["image_size"],
        exchanged_parameters=panel.exchanged[model],
        folds=panel.units == "folds",
        balanced_accuracy=_interval(balanced, len(cells)),
        auroc=auroc and _interval(auroc, len(cells)),
        less=less,
        commits=tuple(sorted({cell.provenance.commit for cell in cells})),
    )


def _interval(estimate: Estimate, runs: int) -> Interval:
    """Rounded to what a reader can use, so that the file changes only where results do."""
    low, high = (value if value is None else round(value, 4) for value in (estimate.low, estimate.high))
    return Interval(mean=round(estimate.value, 4), low=low, high=high, runs=runs)
