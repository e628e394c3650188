"""Whether the device computes what the CPU does: the repository's contract tests, and a round of every method."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.speed.device.packed import ROOT
from benchmark.speed.device.steps import Skipped, Step
from pt_peft.data.site_data import ImageSplit
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.files import sha256_of
from pt_peft.model.backbone import create_backbone
from pt_peft.model.method import method_names
from pt_peft.schema import parse
from pt_peft.training.trainer import LocalTrainer

SECTION = "contract"
RELATIVE = 1e-4
"""The distance of the device's adapter from the CPU's that is wanted at most, over the adapter's norm."""
TESTS = "tests/model/test_contract.py"
TESTS_S = 120.0
"""Seconds that the tests may take at most."""
_CONFIG = "[pytest]\nmarkers =\n    slow: minutes long\n"
_TINY = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
_SIDE, _IMAGES, _CLASSES = 32, 48, ("a", "b", "c", "d")
_OUTCOME = re.compile(r"::test_\S+ (PASSED|FAILED|SKIPPED|ERROR)")


def contract_steps(device: torch.device, folder: Path, out: Path) -> Iterator[Step]:
    """A step for each method, and then the tests, which take as long as the section may.

    Args:
        device: what is compared with the CPU.
        folder: takes a small backbone.
        out: takes what the tests print.
    """
    weights = folder / "tiny.safetensors"
    taken: list[float] = []

    def step(name: str) -> Step:
        def run(left: float) -> Mapping[str, Any]:
            started = time.perf_counter()
            found = compare(name, weights, device)
            taken.append(time.perf_counter() - started)
            return found

        return Step(SECTION, name, run, lambda: 1.5 * min(taken[-3:], default=3.0))

    yield from map(step, method_names())
    yield Step(SECTION, TESTS, lambda left: run_tests(device, out, left), lambda: 20.0)


def run_tests(device: torch.device, out: Path, left: float) -> dict[str, Any]:
    """Runs those of the contract tests that train on `device`; `out` takes what they print. Raises Skipped."""
    if not (ROOT / TESTS).is_file():
        raise Skipped(f"{TESTS} is not here")
    if find_spec("pytest") is None:
        raise Skipped("pytest is not installed here")
    config = out / "pytest.ini"
    config.write_text(_CONFIG, encoding="utf-8")
    command = [
        sys.executable, "-m", "pytest", "-v", "-c", str(config), f"--rootdir={ROOT}", "-p", "no:cacheprovider",
        "-k", f"restart_in_the_middle and {device.type}", str(ROOT / TESTS),
    ]  # fmt: skip
    log = out / "contract_tests.log"
    code: int | str
    with open(log, "wb") as output:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        limit = max(1.0, min(left, TESTS_S))
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=output, stderr=output, timeout=limit, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"none within {limit:.0f} s"
    return {"exit_code": code, **read_outcomes(log.read_text(errors="replace"))}


def read_outcomes(log: str) -> dict[str, Any]:
    """Counts the outcomes in what ``pytest -v`` printed, and names what failed."""
    counts = Counter(one.group(1).lower() for one in _OUTCOME.finditer(log))
    lines = log.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    said = lines[-3:] if not counts else []
    return {"tests": dict(counts), "failed_tests": failed[:50], **({"said": said} if said else {})}


def compare(name: str, weights: Path, device: torch.device) -> dict[str, Any]:
    """Trains a round of a method in float32 on the CPU and twice on `device`, on a small ViT with augmentation.

    Args:
        name: of the method.
        weights: file of the backbone; it is written if it is not there.
        device: what is compared with the CPU.

    Returns:
        ``relative``: the norm of the difference of the device's adapter from the CPU's over the norm of the latter;
        ``relative_change``: the same over how far training moved the adapter; ``worst``: the tensor whose greatest
        difference is most of its greatest value, and ``worst_relative``; ``logits_relative``: greatest difference of
        logits, over the greatest logit, of the CPU's adapter evaluated by both; ``again``: greatest difference between
        the adapters of the same round on the device done twice; ``equal``: whether ``relative`` is at most `RELATIVE`.
    """
    experiment = _experiment(name, weights)
    images = np.random.default_rng(1).integers(0, 256, (_IMAGES, 3, _SIDE, _SIDE), dtype=np.uint8)
    split = ImageSplit(images, np.arange(_IMAGES) % len(_CLASSES))
    on_cpu, on_device = (LocalTrainer(experiment, weights, one) for one in (torch.device("cpu"), device))
    expected = on_cpu.train("site-1", split, on_cpu.initial, 0).tensors
    first, second = (on_device.train("site-1", split, on_device.initial, 0).tensors for _ in range(2))
    logits = [one.predict(expected, split)[0] for one in (on_cpu, on_device)]
    worst, most = max(
        ((key, _ratio(np.abs(first[key] - value).max(), np.abs(value).max())) for key, value in expected.items()),
        key=lambda one: one[1],
    )
    difference = _norm({key: first[key] - value for key, value in expected.items()})
    moved = _norm({key: value - on_cpu.initial[key] for key, value in expected.items()})
    relative = _ratio(difference, _norm(expected))
    return {
        "relative": relative,
        "relative_change": _ratio(difference, moved),
        "worst": worst,
        "worst_relative": most,
        "logits_relative": float((logits[0] - logits[1]).abs().max() / logits[0].abs().max()),
        "again": max(float(np.abs(first[key] - value).max()) for key, value in second.items()),
        "equal": relative <= RELATIVE,
    }


def _experiment(name: str, weights: Path) -> Experiment:
    backbone = {"name": "vit_tiny_patch16_224", "kwargs": _TINY, "image_size": _SIDE}

    def with_digest(digest: str) -> Experiment:
        content = {
            "name": "contract",
            "backbone": {**backbone, "sha256": digest},
            "data": {"source": "lesions", "classes": _CLASSES, "augment": ["flip", "rotate90"]},
            "method": {"name": name},
            "training": {"batch_size": 16},
            "federation": {"rounds": 2},
        }
        return parse(Experiment, content, "benchmark.speed.device")

    if not weights.exists():
        from safetensors.torch import save_file

        torch.manual_seed(0)
        model = create_backbone(with_digest("0" * 64).backbone, len(_CLASSES), None)
        save_file({key: value for key, value in model.state_dict().items() if not key.startswith("head.")}, weights)
    return with_digest(sha256_of(weights))


def _norm(tensors: Tensors) -> float:
    return float(np.sqrt(sum(np.square(value, dtype=np.float64).sum() for value in tensors.values())))


def _ratio(difference: float, whole: float) -> float:
    return float(difference / whole) if whole else float(difference > 0)
