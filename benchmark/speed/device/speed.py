"""Images a second and memory of our trainer and of the bare loop, alternating on one device."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors.torch import save_file

from benchmark.speed.device.cases import METHODS, SPEED_CLASSES, Architecture, Case
from benchmark.speed.device.machine import synchronize
from benchmark.speed.device.pace import Pace
from benchmark.speed.device.plain_loop import PlainLoop
from benchmark.speed.device.steps import NoTime, Step, free_memory
from pt_peft.data.site_data import ImageSplit
from pt_peft.files import sha256_of
from pt_peft.training.trainer import LocalTrainer

SECTION = "speed"
REPEATS = (5, 3, 2)
"""Rounds of each loop after its first; fewer where time is short."""
ROUND_S = 1.0
"""Seconds that a round should take."""
MOST_STEPS = 64
"""Steps of a round at most."""
CASE_S = 20.0
"""Seconds that a case may take at most, unless a third of what is left to the section is more, or it has one step."""
EVALUATION_BATCH = {"cpu": 256, "cuda": 1024}
"""Images in a batch of the bare loop's evaluation."""
Runs = Mapping[str, Callable[[], object]]
"""What a loop does: ``train`` and ``evaluate``."""
_EVALUATION = 1 / 3
"""An evaluation's share of a training round's seconds."""


@dataclass(frozen=True)
class Peak:
    """The most memory of the device that something takes, bytes; None on a CPU, where processes share theirs."""

    allocated: int | None
    reserved: int | None


class Weights:
    """Files with random weights, one for each architecture."""

    def __init__(self, folder: Path, device: torch.device):
        """`folder` takes the files; values are drawn on `device`, where that takes no time."""
        self._folder, self._device = folder, device
        self._held: tuple[Architecture, Path, dict[str, torch.Tensor]] | None = None

    def of(self, architecture: Architecture) -> tuple[Path, dict[str, torch.Tensor]]:
        """Returns the file of `architecture`, and its tensors on the CPU."""
        if self._held is None or self._held[0] != architecture:
            torch.manual_seed(0)
            with self._device:
                model = timm.create_model(
                    architecture.name, num_classes=0, img_size=architecture.size, **architecture.kwargs
                )
            tensors = {key: value.to("cpu", copy=True).contiguous() for key, value in model.state_dict().items()}
            path = self._folder / "weights.safetensors"
            path.unlink(missing_ok=True)  # a file that is mapped must not be written to
            save_file(tensors, path)
            self._held = architecture, path, tensors
        return self._held[1:]


class Loops:
    """The bare loop and ours, with the same images.

    Attributes:
        images: uint8 (N,3,S,S), of a round.
        labels: int64 (N,).
        peaks: memory of each loop's training and evaluation, by its name and ``train`` or ``evaluate``.
        first: seconds of the first rounds.
        parameters: trained values of each loop.
    """

    def __init__(
        self,
        case: Case,
        weights: Weights,
        device: torch.device,
        steps_of: Callable[[float], int],
        make_ours: Callable[..., LocalTrainer] = LocalTrainer,
    ):
        """Builds both models and lets each train and evaluate once, so that nothing is measured that happens once.

        Args:
            case: what they train.
            weights: of the backbone.
            device: where.
            steps_of: takes the seconds of a step and returns the steps of a round.
            make_ours: makes our trainer of an experiment, a weights file and the device.
        """
        self._case, self._weights, self._device = case, weights, device
        self._round = 0
        self._steps_of, self._make_ours = steps_of, make_ours
        self.images, self.labels = self._random_images(case.batch_size)
        self.peaks: dict[str, dict[str, Peak]] = {}
        self.first: dict[str, float] = {}
        self.parameters: dict[str, int] = {}
        self._runs = {"bare": self._made("bare", self._bare), "ours": self._made("ours", self._ours)}
        if self.parameters["bare"] != self.parameters["ours"]:
            raise RuntimeError(f"the loops train different numbers of parameters: {self.parameters}")

    def _bare(self) -> Runs:
        """The bare loop. Its second step says how many images there are."""
        case, options = self._case, METHODS[self._case.method]
        loop = PlainLoop(
            self._weights.of(case.architecture)[1],
            case.architecture.name,
            {"img_size": case.architecture.size, **case.architecture.kwargs},
            len(SPEED_CLASSES),
            self._device,
            rank=options.get("lora", {}).get("rank", 0),
            prompts=options.get("vpt_deep", {}).get("num_prompts", 0),
            bfloat16=case.precision == "bfloat16",
        )
        self.parameters["bare"] = sum(one.numel() for one in loop.trained.values())
        start = loop.state()
        steps = self._steps_of(self._seconds_of_step(loop))
        self.images, self.labels = self._random_images(steps * case.batch_size)
        images, labels = (torch.from_numpy(one).to(self._device) for one in (self.images, self.labels))
        batch = EVALUATION_BATCH[self._device.type]
        return {
            "train": lambda: loop.train(start, images, labels, case.batch_size),
            "evaluate": lambda: loop.predict(start, images, batch),
        }

    def _ours(self) -> Runs:
        path, _ = self._weights.of(self._case.architecture)
        experiment = self._case.experiment(sha256_of(path), len(self.labels))
        trainer = self._make_ours(experiment, path, self._device)
        self.parameters["ours"] = sum(one.numel() for one in trainer.model.trained.values())
        split, start = ImageSplit(self.images, self.labels), trainer.initial
        return {
            "train": lambda: trainer.train("site-1", split, start, self._round),
            "evaluate": lambda: trainer.predict(start, split),
        }

    def _random_images(self, count: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        generator, size = np.random.default_rng(0), self._case.architecture.size
        images = generator.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        return images, generator.integers(0, len(SPEED_CLASSES), count)

    def _seconds_of_step(self, loop: PlainLoop) -> float:
        """Seconds of the second step on one batch."""
        images, labels = (torch.from_numpy(one).to(self._device) for one in (self.images, self.labels))
        start = loop.state()
        return [self._timed(lambda: loop.train(start, images, labels, len(images))) for _ in range(2)][-1]

    def _timed(self, run: Callable[[], object]) -> float:
        """Seconds that `run` takes on the device."""
        synchronize(self._device)
        started = time.perf_counter()
        run()
        synchronize(self._device)
        return time.perf_counter() - started

    def _made(self, name: str, make: Callable[[], Runs]) -> Runs:
        """What `make` returns, after its first training and evaluation, whose memory is noted."""
        cuda = self._device.type == "cuda"
        free_memory()
        before = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) if cuda else (0, 0)
        runs = make()
        self.peaks[name] = {}
        for what, run in runs.items():
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds = self._timed(run)
            if what == "train":
                self.first[name] = seconds
            peak = Peak(None, None)
            if cuda:
                now = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
                peak = Peak(now[0] - before[0], now[1] - before[1])
            self.peaks[name][what] = peak
        return runs

    def seconds(self, repeats: int) -> dict[str, dict[str, list[float]]]:
        """Measures `repeats` rounds and evaluations of each loop, alternating.

        Returns:
            Seconds by ``train`` or ``evaluate`` and the loop's name.
        """
        taken: dict[str, dict[str, list[float]]] = {}
        for what in ("train", "evaluate"):
            taken[what] = {name: [] for name in self._runs}
            for _ in range(repeats):
                self._round += 1
                for name, runs in self._runs.items():
                    taken[what][name].append(self._timed(runs[what]))
        return taken


def rounds_of(step_s: float, seconds: float) -> tuple[int, int] | None:
    """How many steps a round may have, and how many rounds are repeated, so that a case fits into `seconds`.

    Args:
        step_s: seconds of a training step.
        seconds: for everything.

    Returns:
        None if not even one step, twice repeated, fits.
    """
    of_both = 2 * step_s * (1 + _EVALUATION)
    for repeats in REPEATS:
        steps = int(seconds / (of_both * (repeats + 1)))
        if steps >= (1 if repeats == REPEATS[-1] else 4):
            return min(steps, MOST_STEPS, max(4, math.ceil(ROUND_S / step_s))), repeats
    return None


def least_seconds(step_s: float) -> float:
    """Seconds of the smallest case that `rounds_of` makes."""
    return 2 * step_s * (1 + _EVALUATION) * (REPEATS[-1] + 1)


def measure(
    case: Case,
    weights: Weights,
    device: torch.device,
    pace: Pace,
    left: float,
    make_ours: Callable[..., LocalTrainer] = LocalTrainer,
) -> dict[str, Any]:
    """Measures one case in at most `left` seconds, as far as that can be foreseen.

    Args:
        case: what is trained.
        weights: of the backbone.
        device: where.
        pace: foresees, and learns.
        left: seconds.
        make_ours: as for `Loops`.

    Raises:
        NoTime: if they are too few.
    """
    started = time.monotonic()
    repeats = 0

    def steps_of(step_s: float) -> int:
        nonlocal repeats
        pace.note(case, case.batch_size, step_s)
        passed = time.monotonic() - started
        plan = rounds_of(step_s, 0.8 * (min(left, max(CASE_S, left / 3)) - passed))
        if plan is None:  # then the smallest case may take all that is left
            if (seconds := 0.8 * (left - passed)) < (least := least_seconds(step_s)):
                raise NoTime(least, seconds)
            plan = 1, REPEATS[-1]
        steps, repeats = plan
        return steps

    loops = Loops(case, weights, device, steps_of, make_ours)
    images, taken = len(loops.images), loops.seconds(repeats)
    pace.note(case, images, statistics.median(taken["train"]["bare"]))
    return {**of_case(case), "images": images, "repeats": repeats, **compared(loops, taken, images)}


def of_case(case: Case) -> dict[str, Any]:
    """The case's fields in a record."""
    return {
        "model": case.model, "method": case.method, "precision": case.precision, "batch_size": case.batch_size,
    }  # fmt: skip


def compared(loops: Loops, taken: Mapping[str, Mapping[str, list[float]]], images: int) -> dict[str, Any]:
    """The measured fields of a record.

    Args:
        loops: that were measured.
        taken: what `Loops.seconds` returned.
        images: of a round.
    """
    found: dict[str, Any] = {"trained_parameters": loops.parameters["ours"], "first_round_s": loops.first}
    for what, loop in taken.items():
        medians = {name: statistics.median(seconds) for name, seconds in loop.items()}
        found[what] = {
            "images_per_s": {name: images / seconds for name, seconds in medians.items()},
            "ours_over_bare": medians["bare"] / medians["ours"],
            "seconds": loop,
            "memory": {name: vars(loops.peaks[name][what]) for name in loop},
            "memory_ours_over_bare": _memory_ratio(loops.peaks["ours"][what], loops.peaks["bare"][what]),
        }
    return found


def _memory_ratio(ours: Peak, bare: Peak) -> float | None:
    return ours.allocated / bare.allocated if ours.allocated and bare.allocated else None


def warm_up(device: torch.device) -> None:
    """Does what is done once, so that nothing measured holds it: late imports, and the libraries' workspaces."""
    for precision in (torch.float32, torch.bfloat16):
        images = torch.ones(2, 3, 32, 32, device=device)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 16, 16), torch.nn.Flatten(), torch.nn.Linear(256, 64), torch.nn.Linear(64, 8)
        ).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            torch.autograd.backward(model(images).float().sum())
    synchronize(device)


def speed_steps(cases: Iterable[Case], weights: Weights, device: torch.device, pace: Pace) -> Iterator[Step]:
    """A step for each of `cases`."""

    def step(case: Case) -> Step:
        return Step(
            SECTION,
            case.name,
            lambda left: measure(case, weights, device, pace, left),
            lambda: least_seconds(pace.step(case)) / 0.8,
        )

    yield from map(step, cases)
