"""What a suite says of the three claims, in words: never more than the intervals of `benchmark.report.claims`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np

from benchmark.report import claims
from benchmark.report.blocks import NONE, Table, Value, count, in_brackets, in_points, interval, points, text
from benchmark.report.claims import (
    COST,
    FULL,
    IN_DOMAIN,
    MARGIN,
    MOST,
    OUT_OF_DOMAIN,
    Answer,
    Cost,
    Holding,
    Start,
    tabulate,
)
from benchmark.report.figures import metric_name
from benchmark.report.panels import Panel
from benchmark.report.results import Results
from benchmark.report.slopes import main_panels

FIRST = f"Claim 1, most PEFT methods hold in-domain, less than {MARGIN:g} point below full fine-tuning"
SECOND = f"Claim 2, out of domain and non-IID fewer exchanged parameters cost accuracy, up to {COST:g} points a decade"
THIRD = "Claim 3, an in-domain initial model matters more than the method"
METRICS = ("balanced_accuracy", "accuracy")
HOLDS: dict[Answer, str] = {
    "supported": "holds",
    "not supported": "falls short",
    "the data cannot tell": "cannot be told",
}
AS_MUCH: dict[Answer, str] = {
    "supported": "exceeded",
    "not supported": "excluded, it is less",
    "the data cannot tell": "inside the interval",
}
Left = TypeVar("Left", Cost, Start)


def answers(results: Results, panels: Sequence[Panel]) -> tuple[list[str], list[Table]]:
    """The sentences, and the tables that they rest on."""
    main = main_panels(list(panels))
    backbones = sorted({name for panel in main for name in panel.backbones})
    further = _trained_further(results)
    general = [name for name in backbones if name not in further] or backbones
    inside = [panel for panel in main if panel.key.domain == IN_DOMAIN]
    outside = [panel for panel in main if panel.key.domain == OUT_OF_DOMAIN]
    pairs = [_in_order(pair, further, outside) for pair in combinations(backbones, 2)]
    methods = _planned(results, main)
    said = [_holds(inside, backbone, methods) for backbone in general]
    said += [_costs(outside, backbone, methods) for backbone in general]
    said += [_starts(outside, pair, further, methods) for pair in pairs]
    if not pairs:
        said.append(f"{THIRD}: the data cannot tell. The suite has results from one initial model, and it takes two.")
    tables = [*_holding_tables(inside, general, methods), _cost_table(main, backbones), _start_table(outside, pairs)]
    return said, [table for table in tables if table.rows]


def _planned(results: Results, panels: Sequence[Panel]) -> list[str]:
    """The suite's methods, and those that have results."""
    fields = results.suite.get("methods")
    named = [str(name) for name in fields] if isinstance(fields, list) else []
    there = [model.method for panel in panels for backbone in panel.backbones for model in panel.models(backbone)]
    return list(dict.fromkeys([*named, *there]))


def _trained_further(results: Results) -> set[str]:
    """The initial models that the suite trained further, on images of its own."""
    models = results.suite.get("backbones")
    fields = models.items() if isinstance(models, dict) else ()
    return {name for name, model in fields if isinstance(model, dict) and model.get("pretraining")}


def _in_order(pair: tuple[str, str], further: set[str], panels: Sequence[Panel]) -> tuple[str, str]:
    """The in-domain model first: the one that was trained further, or else the better one."""
    first, second = pair
    if (first in further) != (second in further):
        turn = second in further
    else:
        found = claims.start(tabulate(panels, pair))
        turn = found is not None and found.model.value < 0
    return (second, first) if turn else pair


def _holds(panels: Sequence[Panel], backbone: str, methods: Sequence[str]) -> str:
    """The first claim."""
    found = claims.holding(tabulate(panels, [backbone]), methods)
    if found is None:
        wanted = f"a panel of domain '{IN_DOMAIN}' with {FULL}, another method and two common seeds or folds"
        return f"{FIRST}: the data cannot tell. From {backbone}, the suite lacks {wanted}."
    total = len(found.planned)
    parts = [
        f"{len(names)} of {total} {words} ({', '.join(names)})"
        for words, names in (
            ("hold", found.where("supported")),
            ("fall short", found.where("not supported")),
            ("cannot be told", found.where("the data cannot tell")),
            ("are not finished", found.missing),
        )
        if names
    ]
    return (
        f"{FIRST}: {found.answer}. From {backbone}, on {_where(found.table)}, {'; '.join(parts)}, each by the 95 % "
        f"interval of its own difference in balanced accuracy. Their mean difference is {in_points(found.mean)} points "
        f"({_n(found.table)}). That {found.majority} hold, or that {total - found.majority + 1} fall short, is tested "
        f"over all {total} together, with an error of 2.5 % each. {_if_holding(found)}"
        f"{_not_counted(panels, found.table, methods)}"
    )


def _if_holding(found: Holding) -> str:
    """What would change the answer."""
    if found.margin is None:
        return "Too few methods are finished to tell with any margin that most hold."
    margin = f"with a margin of {max(0.0, found.margin):.1f} points or more these data tell that most hold."
    if found.answer != "the data cannot tell":
        return margin.capitalize()
    return f"{_at_present(found.folds, found.table)}; {margin}"


def _costs(outside: Sequence[Panel], backbone: str, methods: Sequence[str]) -> str:
    """The second claim."""
    skewed, iid = ([panel for panel in outside if panel.iid is dealt] for dealt in (False, True))
    found = claims.cost(tabulate(skewed, [backbone]))
    if found is None:
        wanted = f"a non-IID panel of domain '{OUT_OF_DOMAIN}' with three methods and two common seeds or folds"
        return f"{SECOND}: the data cannot tell. From {backbone}, the suite lacks {wanted}."
    accuracy = claims.cost(tabulate(skewed, [backbone], "accuracy"))
    beside = claims.cost(tabulate(iid, [backbone]))
    return (
        f"{SECOND}: {_cost_in_words(found)}. From {backbone}, on {_where(found.table)}, a tenth of the parameters "
        f"costs {found.over_seeds.value:+.1f} points of balanced accuracy ({in_brackets(found.over_seeds)} with these "
        f"{len(found.table.methods)} methods; {in_brackets(found.over_methods)} as if others had been chosen, on which "
        f"the answer rests; {_n(found.table)}). "
        + (f"In accuracy: {_both(accuracy)}. " if accuracy else "")
        + (f"On {_where(beside.table)}, in balanced accuracy: {_both(beside)}. " if beside else "")
        + "".join(_to_exclude(found, bound) for bound in (0.0, COST) if found.above(bound) == "the data cannot tell")
        + _left_out(found.without_one, lambda one: one.over_seeds.value, found.answer, _cost_in_words)
        + _not_counted(skewed, found.table, methods)
    )


def _cost_in_words(one: Cost) -> str:
    costs, as_much = one.answer
    return f"a cost at all, {costs}; {COST:g} points, {AS_MUCH[as_much]}"


def _to_exclude(found: Cost, bound: float) -> str:
    """What it takes to tell on which side of `bound` the cost is."""
    what, folds = f"To tell it from {bound:g} takes, at the present values and spread,", found.folds(bound)
    if folds is not None:
        return f"{what} about {folds} {_units(found.table)}. "
    methods = found.methods(bound)
    other = f"about {methods}" if methods else f"more than {MOST}"
    return f"{what} {other} methods and more {_units(found.table)}: these methods lie too far off a line. "


def _starts(panels: Sequence[Panel], pair: tuple[str, str], further: set[str], methods: Sequence[str]) -> str:
    """The third claim."""
    first, second = pair
    found = claims.start(tabulate(panels, pair))
    if found is None:
        wanted = f"a panel of domain '{OUT_OF_DOMAIN}' where both have two methods and two seeds or folds in common"
        return f"{THIRD}: the data cannot tell. Of {first} and {second} the suite lacks {wanted}."
    known = (first in further) != (second in further)
    taken = "" if known else f" (the suite does not say which is the in-domain one, and {first} is taken for it)"
    return (
        f"{THIRD}: {found.answer}. On {_where(found.table)}, {first} in place of {second}{taken} adds "
        f"{in_points(found.model)} points of balanced accuracy, mean of {len(found.table.methods)} methods; one method "
        f"in place of another changes {found.method:.1f}, root mean square over all pairs, corrected for noise; the "
        f"first less the second is {in_points(found.difference)} ({_n(found.table)}). "
        + (f"{_at_present(found.folds, found.table)}. " if found.answer == "the data cannot tell" else "")
        + _left_out(found.without_one, lambda one: one.difference.value, found.answer, lambda one: one.answer)
        + _not_counted(panels, found.table, methods)
    )


def _left_out(
    without: Mapping[str, Left], value: Callable[[Left], float], answer: object, words: Callable[[Left], str]
) -> str:
    """How far one method could turn it."""
    if not without:
        return "There are too few methods to leave one out."
    values = {name: value(one) for name, one in without.items()}
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    turned = [f"without {name} ({words(one)})" for name, one in without.items() if one.answer != answer]
    ends = f"{values[low]:+.1f} (without {low}) to {values[high]:+.1f} (without {high})"
    return f"With any one method left out it is {ends}; " + (
        f"the answer is another {', or '.join(turned)}." if turned else "the answer stays."
    )


def _at_present(folds: int | None, table: claims.Table) -> str:
    """How many seeds or folds it takes."""
    number = f"not even {MOST}" if folds is None else f"about {folds}"
    return f"At the present values and spread {number} {_units(table)} would tell"


def _both(found: Cost) -> str:
    return f"{found.over_seeds.value:+.1f} ({in_brackets(found.over_seeds)}; {in_brackets(found.over_methods)})"


def _where(table: claims.Table) -> str:
    return " and ".join(map(_name, table.panels))


def _name(panel: Panel) -> str:
    key = panel.key
    return f"{key.data} {key.partition}" + (f" ({key.variant})" if key.variant != "default" else "")


def _not_counted(panels: Sequence[Panel], table: claims.Table, methods: Sequence[str]) -> str:
    """Panels and methods of which not enough is finished."""
    left = [_name(panel) for panel in panels if panel not in table.panels]
    left += [name for name in methods if name not in table.methods]
    return f" Not counted, as not enough is finished: {', '.join(left)}." if left else ""


def _units(table: claims.Table) -> str:
    return " or ".join(sorted({panel.units for panel in table.panels}, reverse=True))


def _n(table: claims.Table) -> str:
    number = f"n = {len(table.seeds)} {_units(table)}"
    return f"{number}, some tested on the same images: not for other images" if table.same_images else number


def _holding_tables(panels: Sequence[Panel], backbones: Sequence[str], methods: Sequence[str]) -> Iterator[Table]:
    for backbone in backbones:
        found = claims.holding(tabulate(panels, [backbone]), methods)
        if found is None:
            continue
        of_panel = [claims.holding(tabulate([panel], [backbone]), methods) for panel in found.table.panels]
        reading = {name: words for verdict, words in HOLDS.items() for name in found.where(verdict)}
        rows = [
            [
                text(name),
                count(10 ** found.table.size[found.table.methods.index(name)]),
                *(points(one.each.get(name) if one else None) for one in of_panel),
                points(one),
                text(reading[name]),
            ]
            for name, one in found.each.items()
        ]
        header = ["method", "exchanged parameters", *map(_name, found.table.panels)]
        header += ["mean of panels", f"by a margin of {MARGIN:g} point"]
        what = f"balanced accuracy less that of {FULL} in points, with 95 % intervals"
        yield Table(f"Claim 1, {backbone}: {what} ({_n(found.table)})", header, rows)


def _cost_table(panels: Sequence[Panel], backbones: Sequence[str]) -> Table:
    rows: list[list[Value]] = []
    for panel in panels:
        for backbone in backbones:
            for metric in METRICS:
                found = claims.cost(tabulate([panel], [backbone], metric))
                if found:
                    rows.append(
                        [
                            text(_name(panel)),
                            text(panel.key.domain),
                            text({True: "yes", False: "no", None: NONE}[panel.iid]),
                            text(backbone),
                            text(metric_name(metric)),
                            points(found.over_seeds),
                            interval(found.over_methods),
                            text(AS_MUCH[found.answer[1]]),
                            count(len(found.table.methods)),
                            text(_n(found.table)),
                        ]
                    )
    header = ["panel", "domain", "IID", "initial model", "metric", "a tenth costs (points)", "as if with other methods"]
    header += [f"{COST:g} points", "methods", "n"]
    return Table("Claim 2: what a tenth of the exchanged parameters costs, with 95 % intervals", header, rows)


def _start_table(panels: Sequence[Panel], pairs: Sequence[tuple[str, str]]) -> Table:
    rows: list[list[Value]] = []
    for pair in pairs:
        for panel in panels:
            found = claims.start(tabulate([panel], pair))
            if found:
                means = found.table.points.mean(axis=(0, 3))
                spans = [f"{float(np.ptp(means[place])):.1f} from {name}" for place, name in enumerate(pair)]
                rows.append(
                    [
                        text(_name(panel)),
                        text(f"{pair[0]} in place of {pair[1]}"),
                        points(found.model),
                        Value(f"{found.method:.1f}", found.method),
                        points(found.difference),
                        text(", ".join(spans)),
                        count(len(found.table.methods)),
                        text(_n(found.table)),
                    ]
                )
    header = ["panel", "initial model", "adds (points)", "another method changes (points)", "the first less the second"]
    header += ["best less worst mean of a method, noise included (points)", "methods", "n"]
    return Table("Claim 3: the initial model beside the method, balanced accuracy, with 95 % intervals", header, rows)
