"""Judges a suite's gates by its results."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmark.measurements.intervals import paired
from benchmark.report.baselines import baseline_tests
from benchmark.report.blocks import Table, in_points, text
from benchmark.report.figures import metric_name
from benchmark.report.panels import Model, Panel, PanelKey, panels
from benchmark.report.results import Results
from benchmark.sweep.gates import Floor, Gates, NotBelow
from benchmark.sweep.records import ChoiceAxes, metric_of
from benchmark.sweep.suite import Suite
from pt_peft.errors import UserError
from pt_peft.schema import parse


@dataclass(frozen=True)
class Verdict:
    """What a gate wants, and what the results say of it so far."""

    gate: str
    """Its place in the suite's file."""
    wanted: str
    faults: list[str] = field(default_factory=list)
    """A sentence each: what is not right, the value seen, and what would be."""
    missing: list[str] = field(default_factory=list)
    """What the suite has planned and the results do not have yet."""

    @property
    def state(self) -> Literal["passed", "open", "failed"]:
        """Open, where it cannot be judged yet."""
        return "failed" if self.faults else "open" if self.missing else "passed"


def judge(results: Results, panels: Sequence[Panel]) -> list[Verdict]:
    """A verdict for each gate that the file's suite has.

    What is finished is judged, and fails, by itself; a gate passes once all that it is about is there.

    Raises:
        UserError: if the suite has gates, and is none that this code can read.
    """
    source = f"the suite in the results of '{results.name}'"
    gates = parse(Gates, results.suite.get("gates") or {}, f"{source}, gates")
    if gates == Gates():
        return []
    suite = parse(Suite, results.suite, source)
    there = {panel.key: panel for panel in panels}
    verdicts = [_floor(name, floor, suite, results, there) for name, floor in gates.floors.items()]
    if gates.not_below:
        verdicts.append(_not_below(gates.not_below, suite, there))
    if gates.rates_inside:
        verdicts.append(_rates_inside(suite, results))
    return verdicts


def faults(verdicts: Sequence[Verdict]) -> list[str]:
    """A sentence for each fault: the gate, what is seen, what would be right."""
    return [f"gate {one.gate}: {fault}." for one in verdicts for fault in one.faults]


def check_gates(results: Results) -> None:
    """Raises UserError if a gate of the suite failed: nothing is to be concluded from its results."""
    if failed := faults(judge(results, panels(results, 0))):
        raise UserError(f"the results of '{results.name}': {' '.join(failed)}")


def gate_table(verdicts: Sequence[Verdict]) -> Table:
    """The gates and how they stand."""
    rows = [
        [text(one.gate), text(one.wanted), text(one.state), text("; ".join(one.faults) or _some(one.missing))]
        for one in verdicts
    ]
    return Table("The suite's gates", ["gate", "what must hold", "state", "what is seen or not there yet"], rows)


def _floor(name: str, floor: Floor, suite: Suite, results: Results, panels: dict[PanelKey, Panel]) -> Verdict:
    limit = f"{100 * floor.at_least:.1f} %"
    verdict = Verdict(f"floors.{name}", f"{floor.of} reaches {limit} {metric_name(floor.metric)} or more")
    covered = [(place, key) for place, key in _places(suite) if floor.covers(place)]
    if not covered:
        verdict.missing.append("any combination that the gate is for: the suite has none")
    for place, key in covered:
        panel, backbone, where = panels.get(key), place["backbone"], f"{key}, {place['backbone']}"
        found = _tested(panel, backbone, floor, results) if panel else {}
        known = [value for value in found.values() if value is not None]
        if known and (mean := sum(known) / len(known)) < floor.at_least:
            verdict.faults.append(
                f"on {where}, {floor.of} reaches {100 * mean:.1f} % {metric_name(floor.metric)} "
                f"(mean of {len(known)}); {limit} or more would be right"
            )
        if absent := [seed for seed in suite.seeds if found.get(seed) is None]:
            verdict.missing.append(f"{floor.of} on {where}, {_seeds(absent)}")
    return verdict


def _tested(panel: Panel, backbone: str, floor: Floor, results: Results) -> dict[int, float | None]:
    """The metric by seed of a method, or else of a baseline."""
    model = Model(backbone, floor.of)
    if model in panel.cells:
        return panel.tested(model, floor.metric)
    if backbone not in panel.backbones:
        return {}
    tests = baseline_tests(panel, backbone, results.baselines).get(floor.of, {})
    return {seed: metric_of(test.pooled, floor.metric) for seed, test in tests.items()}


def _not_below(gate: NotBelow, suite: Suite, panels: dict[PanelKey, Panel]) -> Verdict:
    verdict = Verdict(
        "not_below",
        f"no method is below {gate.method} in {metric_name(gate.metric)}, mean over common seeds or folds, in more "
        f"than {gate.panels} of the panels",
    )
    below: dict[str, dict[PanelKey, list[str]]] = defaultdict(dict)
    for place, key in _places(suite):
        panel, backbone = panels.get(key), place["backbone"]
        for method in suite.methods:
            models = [Model(backbone, gate.method), Model(backbone, method)]
            tested = [panel.tested(one, gate.metric) if panel and one in panel.cells else {} for one in models]
            if not all(set(suite.seeds) <= one.keys() for one in tested):
                verdict.missing.append(f"{method} on {key}, {backbone}")
            difference = paired(tested[1], tested[0])
            if difference and difference.value < 0:
                below[method].setdefault(key, []).append(f"{key}, {backbone}: {in_points(difference)}")
    for method, where in below.items():
        if len(where) > gate.panels:
            seen = "; ".join(one for by_backbone in where.values() for one in by_backbone)
            verdict.faults.append(
                f"{method} is below {gate.method} in {len(where)} panels ({seen} points); "
                f"{gate.panels or 'none'}{' at most' if gate.panels else ''} would be right"
            )
    return verdict


def _rates_inside(suite: Suite, results: Results) -> Verdict:
    verdict = Verdict("rates_inside", "no chosen learning rate is the lowest or highest of those tried")
    made = {choice.axes: choice for choice in results.choices}
    for axes, choice in made.items():
        chosen, where = choice.settings, ", ".join(axes.model_dump(exclude={"domain"}).values())
        rates = sorted({trial.learning_rate for trial in choice.trials if chosen and trial.options == chosen.options})
        if len(rates) == 1:
            verdict.faults.append(f"for {where} only the rate {rates[0]:g} was tried; three or more would be right")
        if choice.edge and chosen:
            verdict.faults.append(
                f"for {where} the {choice.edge} rate was chosen, {chosen.learning_rate:g} of "
                f"{', '.join(f'{rate:g}' for rate in rates)}; trials at a {choice.edge.removesuffix('est')}er rate "
                "would be right"
            )
    for place, _ in _places(suite):
        if suite.tuning and place["partition"] == suite.tuned_on(place):
            for method in suite.methods:
                axes = ChoiceAxes(domain=suite.data[place["data"]].domain, **place, method=method)
                if axes not in made or made[axes].chosen is None:
                    verdict.missing.append(f"the trials of {', '.join((*place.values(), method))}")
    return verdict


def _places(suite: Suite) -> Iterator[tuple[dict[str, str], PanelKey]]:
    for place in suite.places():
        domain = suite.data[place["data"]].domain
        yield place, PanelKey(domain, place["data"], place["partition"], place["variant"])


def _seeds(seeds: Sequence[int]) -> str:
    return ("seed or fold " if len(seeds) == 1 else "seeds or folds ") + ", ".join(map(str, seeds))


def _some(missing: Sequence[str], shown: int = 3) -> str:
    more = f"; and {len(missing) - shown} more" if len(missing) > shown else ""
    return "; ".join(missing[:shown]) + more
