"""How long a training step takes: first guessed from a matrix product, then from the nearest step that was measured."""

import time

import torch

from benchmark.speed.device.cases import Case
from benchmark.speed.device.machine import synchronize
from pt_peft.model.model_input import Precision

_SIDE = {"cpu": 512, "cuda": 4096}
"""Sides of the matrices."""
_SHARE = {"cpu": 0.4, "cuda": 0.2}
"""Share of a matrix product's rate that a training step may have."""
_LAUNCHES_S = {"cpu": 0.0, "cuda": 0.02}
"""Seconds that a step on a device takes to be launched."""


class Pace:
    """Estimates seconds of training."""

    def __init__(self, device: torch.device):
        """Nothing is measured before the first estimate."""
        self._device = device
        self._rates: dict[Precision, float] = {}
        self._seen: dict[Precision, list[tuple[float, float]]] = {"float32": [], "bfloat16": []}

    def note(self, case: Case, images: int, seconds: float) -> None:
        """Notes that training on `images` of `case` took `seconds`."""
        self._seen[case.precision].append((case.flops(case.batch_size), case.batch_size * seconds / images))

    def step(self, case: Case) -> float:
        """Seconds of a training step of `case`: those of the step seen that is nearest in size, scaled."""
        flops = case.flops(case.batch_size)
        if seen := self._seen[case.precision]:
            size, seconds = min(reversed(seen), key=lambda one: max(one[0] / flops, flops / one[0]))
            # A smaller step takes more of its time for each operation.
            return seconds * max(flops / size, (flops / size) ** 0.5)
        if case.precision not in self._rates:
            self._rates[case.precision] = self._rate(case.precision)
        return _LAUNCHES_S[self._device.type] + flops / self._rates[case.precision]

    def _rate(self, precision: Precision) -> float:
        """Floating-point operations a second that may be reached, from a product of two matrices."""
        side = _SIDE[self._device.type]
        one = torch.ones(side, side, device=self._device, dtype=getattr(torch, precision))
        taken: list[float] = []
        for _ in range(3):
            synchronize(self._device)
            started = time.perf_counter()
            torch.matmul(one, one)
            synchronize(self._device)
            taken.append(time.perf_counter() - started)
        return _SHARE[self._device.type] * 2 * side**3 / min(taken[1:])
