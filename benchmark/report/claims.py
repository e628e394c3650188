r"""The three claims of Alkhunaizi et al. 2025 (doi:10.1007/978-3-031-77610-6_22) as quantities, with their intervals.

All are of one table: the balanced accuracy y[p, m, k] in points of method m in seed or fold k on panel p, from one
initial model. Means over panels come first, so that there is one value a seed, and t intervals over seeds hold however
a seed's panels depend on one another. The panels, and where nothing else is said the methods, are these very ones.

1. In-domain, d[m] is the mean of y[m] - y[full], of all other methods, the linear probe among them. A method *holds*
   if d[m] is not below -`MARGIN` points (non-inferiority), and most do if more than half of the methods hold.
2. Out of domain and not IID, the slope of y against log10 of the exchanged parameters, by least squares. Its interval
   takes the methods as drawn at random too, as the claim is about any method.
3. Out of domain, D is the mean over methods of what the in-domain model adds, and S what another method changes:

       D = mean_m (y'[m] - y[m]),    S = sqrt(2 sigma²),    sigma² = variance over methods of E y[m]

   S is the root mean square difference between two of the methods drawn at random, as D is between two models. sigma²
   is estimated by the covariance over methods of two seeds, mean of all pairs of them, of panels and of the two models:
   noise that seeds do not share has no part in it. The claim is that D - S is above zero.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np

from benchmark.measurements.intervals import (
    LEVEL,
    Estimate,
    Floats,
    Shared,
    half_width,
    over_seeds,
    p_above,
    p_of_several,
    shared_by_methods,
    slopes_of,
)
from benchmark.report.panels import Model, Panel

IN_DOMAIN, OUT_OF_DOMAIN = "in-domain", "out-of-domain"
"""The labels of data in the suite that the claims are about; those of another are in no claim."""
FULL = "full"
"""The method that all parameters are trained by."""
MARGIN = 1.0
"""Points that a method may lose and still holds."""
COST = 4.0
"""Points of a decade of exchanged parameters, by the claim."""
FEW = 3
"""Seeds below which a panel is not counted beside others that have as many."""
MOST = 200
"""Folds or methods beyond which nothing is planned."""
TAIL = (1 - LEVEL) / 2

Key = TypeVar("Key")
Answer = Literal["supported", "not supported", "the data cannot tell"]


@dataclass(frozen=True)
class Table:
    """A metric in points, of the methods and seeds that all of the panels have from all of the initial models."""

    panels: tuple[Panel, ...]
    backbones: tuple[str, ...]
    methods: tuple[str, ...]
    """In order of exchanged parameters."""
    seeds: tuple[int, ...]
    size: Floats
    """(M,) log10 of the exchanged parameters, mean over panels and initial models."""
    points: Floats
    """(P,B,M,K)."""

    @property
    def by_method(self) -> Floats:
        """(M,K), mean over panels and initial models."""
        return self.points.mean(axis=(0, 1))

    @property
    def same_images(self) -> bool:
        """Whether seeds were tested on the same images, so that intervals over seeds are not of other ones."""
        return any(panel.share_images(self.seeds) for panel in self.panels)

    def without(self, method: str) -> "Table":
        """The others' rows."""
        kept = [place for place, one in enumerate(self.methods) if one != method]
        methods = tuple(self.methods[place] for place in kept)
        size, points = self.size[kept], self.points[:, :, kept]
        return Table(self.panels, self.backbones, methods, self.seeds, size, points)


def tabulate(panels: Sequence[Panel], backbones: Sequence[str], metric: str = "balanced_accuracy") -> Table | None:
    """The table of those `panels` that have all `backbones`; None if nothing is left.

    Of each panel the methods that have most seeds, and others with at least `FEW` of these; then the panels that have
    the methods of the one with most. Fewer would take the others' seeds or methods away.
    """
    panels = [panel for panel in panels if set(backbones) <= set(panel.backbones)]
    having = {panel.key: _common(panel, backbones) for panel in panels}
    most = max((methods for methods, _ in having.values()), key=len, default=())
    whole = {panel.key: having[panel.key][1] for panel in panels if set(most) <= set(having[panel.key][0])}
    keys, seeds = _together(whole)
    ripe = [panel for panel in panels if panel.key in keys]
    methods = having[ripe[0].key][0] if ripe else ()
    if not methods or not seeds:
        return None
    values = [
        [
            [panel.by_seed({Model(backbone, method): 100.0}, metric, seeds) for method in methods]
            for backbone in backbones
        ]
        for panel in ripe
    ]
    if any(one is None for row in values for by_method in row for one in by_method):
        return None
    sizes = [
        [[panel.exchanged[Model(backbone, method)] for method in methods] for backbone in backbones] for panel in ripe
    ]
    return Table(
        tuple(ripe), tuple(backbones), methods, seeds, np.log10(sizes).mean(axis=(0, 1)), np.array(values, np.float64)
    )


def _common(panel: Panel, backbones: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Methods that send something from all `backbones`, and seeds that they have in common."""
    models = {
        model.method: [Model(backbone, model.method) for backbone in backbones] for model in panel.models(backbones[0])
    }
    return _together(
        {
            method: panel.common_seeds(of_method)
            for method, of_method in models.items()
            if all(panel.exchanged.get(one) for one in of_method)
        }
    )


def _together(having: Mapping[Key, Sequence[int]]) -> tuple[tuple[Key, ...], tuple[int, ...]]:
    """Those with most seeds, and others that leave at least `FEW` in common, or as many as there are; those seeds."""
    kept: list[Key] = []
    seeds: set[int] = set()
    for key in sorted(having, key=lambda key: len(having[key]), reverse=True):
        both = seeds & set(having[key]) if kept else set(having[key])
        if len(both) >= min(FEW, len(seeds)):
            kept.append(key)
            seeds = both
    return tuple(key for key in having if key in kept), tuple(sorted(seeds))


@dataclass(frozen=True)
class Holding:
    """The first claim: each method less full fine-tuning."""

    table: Table
    planned: frozenset[str]
    """All methods that the suite compares with full fine-tuning; of those that the table lacks nothing is known."""

    @cached_property
    def differences(self) -> dict[str, Floats]:
        """(K,) points by method."""
        points = self.table.by_method
        full = points[self.table.methods.index(FULL)]
        return {name: row - full for name, row in zip(self.table.methods, points, strict=True) if name != FULL}

    @property
    def each(self) -> dict[str, Estimate]:
        """By method."""
        return {name: over_seeds(values.tolist()) for name, values in self.differences.items()}

    @property
    def mean(self) -> Estimate:
        """Over all methods."""
        return over_seeds(np.mean(list(self.differences.values()), axis=0).tolist())

    def where(self, verdict: Answer) -> list[str]:
        """The methods that hold, do not, or of which the data cannot tell, by each one's own interval."""
        return [name for name, one in self.each.items() if _beside(one, -MARGIN) == verdict]

    @property
    def majority(self) -> int:
        """How many methods are most of them."""
        return len(self.planned) // 2 + 1

    @property
    def missing(self) -> list[str]:
        """Planned methods that the table lacks."""
        return sorted(self.planned - set(self.differences))

    @property
    def answer(self) -> Answer:
        """Whether most hold: a wrong answer is given in 5 % of reports at most, over all methods together."""
        return self._most(list(self.differences.values()))

    def _most(self, differences: Sequence[Floats]) -> Answer:
        unknown = [1.0] * len(self.missing)
        up = [p_above(values.tolist(), -MARGIN) for values in differences] + unknown
        down = [p_above((-values).tolist(), MARGIN) for values in differences] + unknown
        if p_of_several(up, self.majority) <= TAIL:
            return "supported"
        return "not supported" if p_of_several(down, len(down) - self.majority + 1) <= TAIL else _UNKNOWN

    @property
    def folds(self) -> int | None:
        """With so many there would be an answer, if means and spreads stayed; None beyond `MOST`."""
        for seeds in range(len(self.table.seeds) + 1, MOST + 1):
            if self._most([_as_if(values, seeds) for values in self.differences.values()]) != _UNKNOWN:
                return seeds
        return None

    @property
    def margin(self) -> float | None:
        """The smallest margin in points by which most would hold, as far as these data can tell; None for too few."""
        if len(self.differences) < self.majority:
            return None
        seeds, level = len(self.table.seeds), TAIL / (len(self.planned) - self.majority + 1)
        bounds = [
            float(values.mean()) - half_width(float(values.std(ddof=1)), seeds, level)
            for values in self.differences.values()
        ]
        return -sorted(bounds, reverse=True)[self.majority - 1]


def holding(table: Table | None, planned: Collection[str]) -> Holding | None:
    """None without full fine-tuning, another method, and two seeds.

    Args:
        table: of what is finished.
        planned: all methods of the suite, those of the table among them.
    """
    known = table and FULL in table.methods and len(table.methods) > 1 and len(table.seeds) > 1
    return Holding(table, frozenset({*planned} - {FULL})) if table and known else None


def _as_if(values: Floats, seeds: int) -> Floats:
    """So many values with the mean and standard deviation of `values`."""
    pattern = np.linspace(-1, 1, seeds)
    return values.mean() + pattern * (values.std(ddof=1) / pattern.std(ddof=1))


@dataclass(frozen=True)
class Cost:
    """The second claim: points a decade of exchanged parameters."""

    table: Table

    @cached_property
    def by_seed(self) -> Floats:
        """(K,)."""
        return slopes_of(self.table.size, self.table.by_method)

    @property
    def over_seeds(self) -> Estimate:
        """With these very methods."""
        return over_seeds(self.by_seed.tolist())

    @property
    def shared(self) -> Shared | None:
        """What seeds share through the methods."""
        return shared_by_methods(self.table.size, self.table.by_method)

    @property
    def over_methods(self) -> Estimate:
        """As if other methods had been drawn."""
        return over_seeds(self.by_seed.tolist(), self.shared)

    def above(self, points: float) -> Answer:
        """Whether the cost is above so many points."""
        return _beside(self.over_methods, points)

    @property
    def answer(self) -> tuple[Answer, Answer]:
        """Whether there is a cost, and whether it is one of `COST` or more."""
        return self.above(0), self.above(COST)

    def folds(self, points: float) -> int | None:
        """With so many `above` would tell, if means and spreads stayed; None beyond `MOST`."""
        for seeds in range(len(self.by_seed) + 1, MOST + 1):
            if _beside(over_seeds(_as_if(self.by_seed, seeds).tolist(), self.shared), points) != _UNKNOWN:
                return seeds
        return None

    def methods(self, points: float) -> int | None:
        """With so many, as far off the line, `above` would tell in `MOST` seeds; None beyond `MOST`."""
        here, seeds = len(self.table.methods), _as_if(self.by_seed, MOST).tolist()
        for methods in range(here + 1, MOST + 1):
            shared = self.shared and Shared(self.shared.variance * here / methods, methods - 2)
            if _beside(over_seeds(seeds, shared), points) != _UNKNOWN:
                return methods
        return None

    @property
    def without_one(self) -> dict[str, "Cost"]:
        """By the method that is left out; empty where fewer than three would stay."""
        return {name: Cost(self.table.without(name)) for name in self.table.methods if len(self.table.methods) > 3}


def cost(table: Table | None) -> Cost | None:
    """None without two sizes of method, two seeds, and three methods: two are on a line whatever they are."""
    known = table and len(table.methods) > 2 and len(set(table.size.tolist())) > 1 and len(table.seeds) > 1
    return Cost(table) if table and known else None


@dataclass(frozen=True)
class Start:
    """The third claim: the first of the table's two initial models less the second, beside another method's part."""

    table: Table

    @property
    def model(self) -> Estimate:
        """D."""
        points = self.table.points.mean(axis=(0, 2))
        return over_seeds((points[0] - points[1]).tolist())

    @property
    def method(self) -> float:
        """S."""
        return _method(self.table.points)

    @property
    def difference(self) -> Estimate:
        """D - S, with an interval from the jackknife over seeds (Efron and Stein 1981) from three seeds."""
        points = self.table.points
        seeds, value = points.shape[3], _beyond(points)
        if seeds < FEW:
            return Estimate(value)
        half = half_width(self._spread, seeds)
        return Estimate(value, value - half, value + half)

    @property
    def _spread(self) -> float:
        """Standard deviation of the jackknife's pseudo-values."""
        points = self.table.points
        seeds = points.shape[3]
        left_out = [_beyond(np.delete(points, seed, axis=3)) for seed in range(seeds)]
        return (seeds - 1) * float(np.std(left_out, ddof=1))

    @property
    def answer(self) -> Answer:
        """Whether the model matters more."""
        return _beside(self.difference, 0)

    @property
    def folds(self) -> int | None:
        """As `Holding.folds`."""
        far = abs(self.difference.value)
        seeds = range(len(self.table.seeds) + 1, MOST + 1)
        return next((count for count in seeds if half_width(self._spread, count) < far), None)

    @property
    def without_one(self) -> dict[str, "Start"]:
        """By the method that is left out; empty where fewer than two would stay."""
        return {name: Start(self.table.without(name)) for name in self.table.methods if len(self.table.methods) > 2}


def start(table: Table | None) -> Start | None:
    """None without two methods and two seeds."""
    return Start(table) if table and len(table.methods) > 1 and len(table.seeds) > 1 else None


def _beyond(points: Floats) -> float:
    """D - S of (P,2,M,K)."""
    first, second = points.mean(axis=(0, 2, 3))
    return float(first - second) - _method(points)


def _method(points: Floats) -> float:
    """S of (P,B,M,K)."""
    methods, seeds = points.shape[2:]
    centred = points - points.mean(axis=2, keepdims=True)
    pairs = np.square(centred.sum(axis=3)).sum(axis=2) - np.square(centred).sum(axis=(2, 3))  # of seeds k and l, k != l
    variance = float(pairs.mean()) / (seeds * (seeds - 1) * (methods - 1))
    return max(0.0, 2 * variance) ** 0.5


_UNKNOWN: Answer = "the data cannot tell"


def _beside(found: Estimate, bound: float) -> Answer:
    """Whether the interval says that the value is above `bound`, that it is below, or neither."""
    if found.low is None or found.high is None:
        return _UNKNOWN
    return "supported" if found.low > bound else "not supported" if found.high < bound else _UNKNOWN
