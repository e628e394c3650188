"""Compares a suite's variants, such as objectives, ways to aggregate, or codecs of the payload."""

from collections import defaultdict

from benchmark.measurements.intervals import paired
from benchmark.report.blocks import NONE, Table, Value, megabytes, percent, points, runs, text
from benchmark.report.figures import metric_name
from benchmark.report.panels import Model, Panel, PanelKey
from benchmark.report.slopes import main_panels
from benchmark.report.statistics import METRICS


def variant_tables(panels: list[Panel]) -> list[Table]:
    """One table for each method, backbone, data and partition that was run in two variants or more.

    Bytes are those of all sites and rounds, means over seeds.
    """
    groups: dict[tuple[PanelKey, Model], list[Panel]] = defaultdict(list)
    for panel in [*main_panels(panels), *panels]:
        for model in panel.cells:
            members = groups[panel.key._replace(variant=""), model]
            if panel not in members:
                members.append(panel)
    return [_table(key, model, members) for (key, model), members in groups.items() if len(members) > 1]


def _table(key: PanelKey, model: Model, members: list[Panel]) -> Table:
    """The first of the `members` is that which the others are compared with."""
    units = members[0].units
    header = ["variant", *(f"{metric_name(metric)} (%)" for metric in METRICS)]
    header += [f"balanced accuracy less {members[0].key.variant} (points)", "lowest to highest balanced accuracy (%)"]
    header += ["to the sites (MB)", "from the sites (MB)", units]
    caption = (
        f"{key.data} ({key.domain}), {key.partition}, {model.backbone}, {model.method}: test metrics by variant, "
        f"mean ± 95 % interval over {units}, and paired differences"
    )
    return Table(caption, header, [_row(panel, model, members[0]) for panel in members])


def _row(panel: Panel, model: Model, first: Panel) -> list[Value]:
    cells = list(panel.cells[model].values())
    reached = [cell.final.test.pooled.balanced_accuracy for cell in cells]
    low, high = min(reached), max(reached)
    return [
        text(panel.key.variant),
        *(percent(panel.estimate(model, metric)) for metric in METRICS),
        points(None if panel is first else paired(*(one.tested(model, "balanced_accuracy") for one in (panel, first)))),
        Value(f"{100 * low:.1f} {NONE} {100 * high:.1f}" if len(cells) > 1 else NONE, low),
        _mean_megabytes([cell.bytes_in for cell in cells]),
        _mean_megabytes([cell.bytes_out for cell in cells]),
        runs(panel.cells[model], panel.units),
    ]


def _mean_megabytes(values: list[int]) -> Value:
    return megabytes(sum(values) / len(values))
