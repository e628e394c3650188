"""Levers of speed, each alone: our trainer with one of them, against the same bare loop."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from benchmark.speed.device.cases import Case
from benchmark.speed.device.pace import Pace
from benchmark.speed.device.speed import Weights, least_seconds, measure
from benchmark.speed.device.steps import Step
from pt_peft.experiment.experiment import Experiment
from pt_peft.training.trainer import LocalTrainer

SECTION = "levers"
MakeTrainer = Callable[[Experiment, Path, torch.device], LocalTrainer]
LEVERS: Mapping[str, MakeTrainer] = {"compile": functools.partial(LocalTrainer, compiled=True)}
"""By the lever's name, what makes a trainer that has it and no other."""
START_S = 60.0
"""Seconds that a lever may take before its first step is done, as those of a compiler; where they are missing, the
section leaves its time to the next."""


def lever_steps(cases: tuple[Case, ...], weights: Weights, device: torch.device, pace: Pace) -> Iterator[Step]:
    """A step for each lever and each of `cases`."""

    def step(name: str, make: MakeTrainer, case: Case) -> Step:
        return Step(
            SECTION,
            f"{name}: {case.name}",
            lambda left: {"lever": name, **measure(case, weights, device, pace, left, make)},
            lambda: START_S + least_seconds(pace.step(case)) / 0.8,
        )

    for case in cases:
        yield from (step(name, make, case) for name, make in LEVERS.items())
