"""Compares a suite's variants, such as objectives, ways to aggregate, or codecs of the payload."""

from collections import defaultdict

from benchmark.report.blocks import NONE, Table, Value, count, megabytes, percent, text
from benchmark.report.figures import metric_name
from benchmark.report.panels import Model, Panel, PanelKey
from benchmark.report.statistics import METRICS

HEADER = [
    "variant",
    *(f"{metric_name(metric)} (%)" for metric in METRICS),
    "lowest to highest balanced accuracy (%)",
    "to the sites (MB)",
    "from the sites (MB)",
    "seeds",
]


def variant_tables(panels: list[Panel]) -> list[Table]:
    """One table for each method, backbone, data and partition that was run in two variants or more.

    Bytes are those of all sites and rounds, means over seeds.
    """
    groups: dict[tuple[PanelKey, Model], list[Panel]] = defaultdict(list)
    for panel in panels:
        for model in panel.cells:
            groups[panel.key._replace(variant=""), model].append(panel)
    return [
        Table(
            f"{key.data} ({key.domain}), {key.partition}, {model.backbone}, {model.method}: "
            "test metrics by variant, mean ± 95 % interval over seeds",
            HEADER,
            [_row(panel, model) for panel in members],
        )
        for (key, model), members in groups.items()
        if len(members) > 1
    ]


def _row(panel: Panel, model: Model) -> list[Value]:
    cells = list(panel.cells[model].values())
    reached = [cell.final.test.pooled.balanced_accuracy for cell in cells]
    low, high = min(reached), max(reached)
    return [
        text(panel.key.variant),
        *(percent(panel.estimate(model, metric)) for metric in METRICS),
        Value(f"{100 * low:.1f} {NONE} {100 * high:.1f}" if len(cells) > 1 else NONE, low),
        _mean_megabytes([cell.bytes_in for cell in cells]),
        _mean_megabytes([cell.bytes_out for cell in cells]),
        count(len(cells)),
    ]


def _mean_megabytes(values: list[int]) -> Value:
    return megabytes(sum(values) / len(values))
