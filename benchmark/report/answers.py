"""What a suite says of the three claims, in words: never more than the intervals of `benchmark.report.claims`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np

from benchmark.report import claims
from benchmark.report.blocks import Block, Table, Value, count, in_brackets, in_points, interval, points, text
from benchmark.report.claims import COST, FULL, IN_DOMAIN, MARGIN, MOST, Answer, Cost, Holding, Start, tabulate
from benchmark.report.figures import metric_name
from benchmark.report.panels import Panel
from benchmark.report.results import Results
from benchmark.report.slopes import main_panels

FIRST = f"Claim 1, most PEFT methods hold in-domain (less than {MARGIN:g} point below full fine-tuning)"
SECOND = f"Claim 2, out of domain and non-IID a tenth of the exchanged parameters costs up to {COST:g} points"  #
THIRD = "Claim 3, an in-domain initial model matters more than the method"
METRICS = ("balanced_accuracy", "accuracy")
WITH = TypeVar("WITH", Cost, Start)


def answers(results: Results, panels: Sequence[Panel]) -> tuple[list[Block], list[Block]]:
    """The sentences, and the tables that they rest on."""
    main = main_panels(list(panels))
    backbones = sorted({name for panel in main for name in panel.backbones})
    further = _trained_further(results)
    general = [name for name in backbones if name not in further] or backbones
    inside = [panel for panel in main if panel.key.domain == IN_DOMAIN]
    outside = [panel for panel in main if panel.key.domain != IN_DOMAIN]
    skewed = [panel for panel in outside if not panel.iid]
    said: list[Block] = [_holds(inside, backbone) for backbone in general]
    said += [_costs(skewed, [panel for panel in outside if panel.iid], backbone) for backbone in general]
    pairs = [_in_order(pair, further, outside) for pair in combinations(backbones, 2)]
    said += [_starts(outside, pair) for pair in pairs]
    if not pairs:
        said.append(f"{THIRD}: the data cannot tell. The suite has one initial model, and it takes two.")
    tables = [*_holding_tables(inside, general), _cost_table(main, backbones), _start_table(outside, pairs)]
    return said, [table for table in tables if table.rows]


def _trained_further(results: Results) -> set[str]:
    """The initial models that the suite made from others, on images of its own."""
    models = results.suite.get("backbones")
    fields = models.items() if isinstance(models, dict) else ()
    return {name for name, model in fields if isinstance(model, dict) and model.get("pretraining")}


def _in_order(pair: tuple[str, str], further: set[str], panels: Sequence[Panel]) -> tuple[str, str]:
    """The in-domain model first: the one that was trained further, or else the better one."""
    trained = [name in further for name in pair]
    if trained[0] != trained[1]:
        return pair if trained[0] else (pair[1], pair[0])
    found = claims.start(tabulate(panels, pair))
    return pair if found is None or found.model.value >= 0 else (pair[1], pair[0])


def _holds(panels: Sequence[Panel], backbone: str) -> str:
    """The first claim."""
    table = tabulate(panels, [backbone])
    found = claims.holding(table)
    if found is None:
        wanted = f"a panel of domain '{IN_DOMAIN}' with {FULL}, another method and two common seeds or folds"
        return f"{FIRST}: the data cannot tell. From {backbone}, the suite lacks {wanted}."
    each, total = found.each, len(found.each)
    parts = [
        f"{len(names)} {what} ({', '.join(f'{name} {in_points(each[name])}' for name in names)})"
        for verdict, what in (
            ("supported", "hold"),
            ("not supported", "fall short"),
            ("the data cannot tell", "cannot be told"),
        )
        if (names := found.where(verdict))
    ]
    return (
        f"{FIRST}: {found.answer}. From {backbone}, on {_where(found.table)}, of {total} methods "
        f"{', '.join(parts)}, by each one's difference in balanced accuracy with its 95 % interval; the mean of all is "
        f"{in_points(found.mean)} points ({_n(found.table)}). The answer takes {found.majority} that hold, or "
        f"{total - found.majority + 1} that fall short, at 5 % over all {total}. {_if_holding(found)}"
    )


def _if_holding(found: Holding) -> str:
    """What would change the answer."""
    margin = f"as far as these data can tell, most hold by a margin of {max(0.0, found.margin):.1f} points or more."
    if found.answer != "the data cannot tell":
        return margin.capitalize()
    return f"{_at_present(found.folds, found.table)}; {margin}"


def _costs(panels: Sequence[Panel], iid: Sequence[Panel], backbone: str) -> str:
    """The second claim."""
    found = claims.cost(tabulate(panels, [backbone]))
    if found is None:
        wanted = "a non-IID panel out of domain with methods of two sizes and two common seeds or folds"
        return f"{SECOND}: the data cannot tell. From {backbone}, the suite lacks {wanted}."
    accuracy = claims.cost(tabulate(panels, [backbone], "accuracy"))
    beside = claims.cost(tabulate(iid, [backbone]))
    wide = found.over_methods
    zero, cost = (_lies(wide, bound) for bound in (0, COST))
    return (
        f"{SECOND}: {found.answer}. From {backbone}, on {_where(found.table)}, a tenth of the parameters costs "
        f"{in_points(found.over_seeds)} points of balanced accuracy with these {len(found.table.methods)} methods, and "
        f"{in_brackets(wide)} as if others had been chosen, by which is answered: no cost is {zero}, and one of "
        f"{COST:g} points is {cost} ({_n(found.table)}). "
        + (f"In accuracy it costs {_both(accuracy)}. " if accuracy else "")
        + (f"IID, it costs {_both(beside)} of balanced accuracy. " if beside else "No IID panel stands beside it. ")
        + _if_cost(found)
    )


def _if_cost(found: Cost) -> str:
    left_out = _left_out(found.without_one, lambda one: one.over_seeds.value, found.answer)
    if found.answer != "the data cannot tell":
        return left_out
    if found.folds is not None or not found.shared or not found.shared.variance:
        return f"{_at_present(found.folds, found.table)}. {left_out}"
    methods = f"{found.methods} methods" if found.methods else f"more than {MOST} methods"
    more = (
        f"No number of {_units(found.table)} would tell, as these methods lie so far off a line: about {methods} would"
    )
    return f"{more}. {left_out}"


def _starts(panels: Sequence[Panel], pair: tuple[str, str]) -> str:
    """The third claim."""
    found = claims.start(tabulate(panels, pair))
    if found is None:
        wanted = "a panel out of domain where both have the same two methods and two common seeds or folds"
        return f"{THIRD}: the data cannot tell. Of {pair[0]} and {pair[1]} the suite lacks {wanted}."
    return (
        f"{THIRD}: {found.answer}. On {_where(found.table)}, {pair[0]} in place of {pair[1]} adds "
        f"{in_points(found.model)} points of balanced accuracy, mean of {len(found.table.methods)} methods; another "
        f"method in place of one changes {found.method:.1f} (root mean square over pairs of methods, without noise); "
        f"the first less the second is {in_points(found.difference)} ({_n(found.table)}). "
        + (f"{_at_present(found.folds, found.table)}. " if found.answer == "the data cannot tell" else "")
        + _left_out(found.without_one, lambda one: one.difference.value, found.answer)
    )


def _left_out(without: Mapping[str, WITH], value, answer: Answer) -> str:
    """How far one method could turn it."""
    if not without:
        return "Too few methods to leave one out."
    values = {name: value(one) for name, one in without.items()}
    low, high = min(values, key=lambda name: values[name]), max(values, key=lambda name: values[name])
    turned = [f"{name} ({one.answer})" for name, one in without.items() if one.answer != answer]
    ends = f"{values[low]:+.1f} (without {low}) to {values[high]:+.1f} (without {high})"
    return f"With any one method left out it is {ends}; " + (
        f"the answer changes without {' or '.join(turned)}." if turned else "the answer stays."
    )


def _at_present(folds: int | None, table: claims.Table) -> str:
    units = _units(table)
    if folds is None:
        return f"At the present values and spread not even {MOST} {units} would tell"
    return f"At the present values and spread about {folds} {units} would tell"


def _both(found: Cost) -> str:
    return f"{in_points(found.over_seeds)} points, and {in_brackets(found.over_methods)} as if with other methods"


def _lies(found, bound: float) -> str:
    return "not excluded" if found.low is not None and found.low < bound <= found.high else "excluded"


def _where(table: claims.Table) -> str:
    return " and ".join(f"{panel.key.data} {panel.key.partition}" for panel in table.panels)


def _units(table: claims.Table) -> str:
    units = sorted({panel.units for panel in table.panels})
    return " or ".join(reversed(units))


def _n(table: claims.Table) -> str:
    number = f"n = {len(table.seeds)} {_units(table)}"
    return (
        f"{number} tested on the same images: for others the intervals are too narrow" if table.same_images else number
    )


def _holding_tables(panels: Sequence[Panel], backbones: Sequence[str]) -> Iterator[Table]:
    for backbone in backbones:
        found = claims.holding(tabulate(panels, [backbone]))
        if found is None:
            continue
        of_panel = [claims.holding(tabulate([panel], [backbone])) for panel in found.table.panels]
        reading = {name: verdict for verdict in _READINGS for name in found.where(verdict)}
        rows = [
            [
                text(name),
                count(10 ** found.table.size[found.table.methods.index(name)]),
                *(points(one.each.get(name) if one else None) for one in of_panel),
                points(found.each[name]),
                text(_READINGS[reading[name]]),
            ]
            for name in found.each
        ]
        header = [
            "method",
            "exchanged parameters",
            *(f"{one.key.data} {one.key.partition}" for one in found.table.panels),
        ]
        what = f"balanced accuracy less that of {FULL} in points, with 95 % intervals"
        caption = f"Claim 1, {backbone}: {what} ({_n(found.table)})"
        yield Table(caption, [*header, "mean", f"by a margin of {MARGIN:g} point"], rows)


_READINGS: dict[Answer, str] = {
    "supported": "holds",
    "not supported": "falls short",
    "the data cannot tell": "cannot be told",
}


def _cost_table(panels: Sequence[Panel], backbones: Sequence[str]) -> Table:
    rows: list[list[Value]] = []
    for backbone in backbones:
        for metric in METRICS:
            for panel in panels:
                found = claims.cost(tabulate([panel], [backbone], metric))
                if found:
                    rows.append(
                        [
                            text(panel.key.data),
                            text(panel.key.domain),
                            text(panel.key.partition),
                            text("yes" if panel.iid else "no"),
                            text(backbone),
                            text(metric_name(metric)),
                            points(found.over_seeds),
                            interval(found.over_methods),
                            text(_lies(found.over_methods, COST)),
                            count(len(found.table.methods)),
                            text(f"{len(found.table.seeds)} {_units(found.table)}"),
                        ]
                    )
    header = ["data", "domain", "partition", "IID", "initial model", "metric", "a decade costs (points)"]
    header += ["as if with other methods", f"{COST:g} points are", "methods", "n"]
    return Table("Claim 2: what a tenth of the exchanged parameters costs, with 95 % intervals", header, rows)


def _start_table(panels: Sequence[Panel], pairs: Sequence[tuple[str, str]]) -> Table:
    rows = []
    for pair in pairs:
        for panel in panels:
            found = claims.start(tabulate([panel], pair))
            if found:
                means = found.table.points.mean(axis=(0, 3))
                spans = [f"{float(np.ptp(means[place])):.1f} ({name})" for place, name in enumerate(pair)]
                rows.append(
                    [
                        text(f"{panel.key.data} {panel.key.partition}"),
                        text(f"{pair[0]} in place of {pair[1]}"),
                        points(found.model),
                        Value(f"{found.method:.1f}", found.method),
                        points(found.difference),
                        text(", ".join(spans)),
                        count(len(found.table.methods)),
                        text(f"{len(found.table.seeds)} {_units(found.table)}"),
                    ]
                )
    header = ["panel", "initial model", "adds (points)", "another method changes (points)", "the first less the second"]
    header += ["best less worst method, as seen", "methods", "n"]
    return Table("Claim 3: the initial model beside the method, balanced accuracy, with 95 % intervals", header, rows)
