"""The cost of the cache and of a round: disk, memory, bytes and time."""

import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pt_peft.data.cache_space import pixel_bytes
from pt_peft.data.site_data import ImageSplit
from pt_peft.environment import usable_cores
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.exchange.schedule import Exchange
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import stage_bytes, stages
from pt_peft.model.backbone import pinned_weights
from pt_peft.model.torch_threads import torch_threads
from pt_peft.site_check.findings import Findings
from pt_peft.site_check.report import CacheCost, MeasuredCost, PayloadCost, RoundCost
from pt_peft.training.footprint import exchange_of_shapes
from pt_peft.training.trainer import LocalTrainer, site_device

TIMED_STEPS = 3
"""Training steps of which the mean duration is taken, after one that is not timed."""
NOT_MEASURED: MeasuredCost = {
    "statistics_seconds": None, "seconds": None, "device": None, "threads": None, "process_memory": None,
}  # fmt: skip


def cache_cost(experiment: Experiment, site: Site, images: int, findings: Findings) -> CacheCost:
    """The space that the decoded images need, 3 bytes a pixel; reports where disk, limit or memory are too small.

    Args:
        experiment: its backbone has the size of the images.
        site: where the cache is and what it may take.
        images: their number.
        findings: takes the problems.
    """
    needed = pixel_bytes(images, experiment.backbone.image_size)
    folder = site.cache_folder()
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    memory = _available_memory()
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        findings.error(
            "cache folder",
            f"{existing} is not a folder that can be written; set 'cache' in site.json to a folder that can.",
        )
    if needed > site.cache_gb * 1e9:
        findings.error(
            "cache limit", f"the cache needs {needed / 1e9:.2f} GB, but 'cache_gb' in site.json is {site.cache_gb:g}."
        )
    if needed > free:
        findings.error(
            "cache disk", f"the cache needs {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB free."
        )
    if memory and needed > memory:
        findings.warning(
            "cache memory",
            f"the cache's {needed / 1e9:.2f} GB do not fit into the {memory / 1e9:.2f} GB of memory available: every "
            "epoch will read from the disk.",
        )
    return {
        "folder": str(folder),
        "bytes": needed,
        "disk_free": free,
        "limit": int(site.cache_gb * 1e9),
        "memory_free": memory,
    }


def round_cost(experiment: Experiment, site: Site, name: str, train: int, val: int, timing: bool = True) -> RoundCost:
    """The payloads of the first round, and the time and memory of a round on this machine.

    Time and memory are measured in a few steps of the real model on noise.

    Args:
        experiment: the experiment.
        site: the site's settings.
        name: the site's name; a site may train LoRA at a rank of its own.
        train: number of training images.
        val: number of validation images.
        timing: whether to measure time and memory, which needs the weights.

    Raises:
        UserError: if the weights or the device do not exist, or the method does not fit the backbone.
        BackboneMismatch: if the site's weights are not those of the experiment.
        OutsideLimits: if a round would send more bytes than the site allows.
    """
    if not timing:
        exchange = exchange_of_shapes(experiment)
        payloads = _payloads(experiment, site, name, exchange)
        return {**payloads, "steps": _steps(experiment, train), **NOT_MEASURED}
    weights = pinned_weights(experiment.backbone, site)
    with torch_threads(site.threads or usable_cores()):
        trainer = LocalTrainer(experiment, weights, site_device(site), compiled=site.compile)
        payloads = _payloads(experiment, site, name, trainer.exchange)
        return {**payloads, "steps": _steps(experiment, train), **_measured(trainer, train, val)}


def _payloads(experiment: Experiment, site: Site, name: str, exchange: Exchange) -> PayloadCost:
    """The bytes of the first round and of all statistics. Raises OutsideLimits if the site does not allow them."""
    exchange = exchange.at_rank(experiment.federation.lora_ranks.get(name))
    nbytes = round_bytes(exchange, experiment.payload, 0, encrypted=experiment.encryption is not None)
    site.limits.check_bytes(experiment, exchange, 0)
    for refusal in site.limits.stage_refusals(experiment, exchange):
        raise refusal
    statistics = [stage_bytes(experiment, exchange, stage) for stage in stages(experiment)]
    return {
        "bytes_in": nbytes.down,
        "bytes_out": nbytes.up,
        "statistics_in": sum(one.down for one in statistics),
        "statistics_out": sum(one.up for one in statistics),
    }


def _batch(experiment: Experiment, train: int) -> int:
    return min(experiment.training.batch_size, train)


def _steps(experiment: Experiment, train: int) -> int:
    epochs = experiment.training.local_epochs if experiment.federation.rounds else 0
    return math.ceil(train / _batch(experiment, train)) * epochs


def _measured(trainer: LocalTrainer, train: int, val: int) -> MeasuredCost:
    experiment = trainer.experiment
    candidates_by = train if experiment.head.choose_by == "leave_one_out" else val
    images = {"counts": 0, "moments": train, "choice": candidates_by}
    looked_at = sum(images[stage.name] for stage in stages(experiment))
    batch, step = _batch(experiment, train), 0.0
    if experiment.federation.rounds:
        trainer.train("check", _noise(experiment, batch), {}, 0)  # the first step allocates
        step = _timed(lambda: trainer.train("check", _noise(experiment, batch * TIMED_STEPS), {}, 0))
        step /= TIMED_STEPS * experiment.training.local_epochs
    evaluation = _timed(lambda: trainer.evaluate({}, _noise(experiment, batch))) / batch
    return {
        "statistics_seconds": round(looked_at * evaluation, 3),
        "seconds": round(_steps(experiment, train) * step + val * evaluation, 3),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "process_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _noise(experiment: Experiment, count: int) -> ImageSplit:
    """Random images with random labels."""
    random, data, size = np.random.default_rng(0), experiment.data, experiment.backbone.image_size
    images = random.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    if data.task == "multilabel":
        return ImageSplit(images, random.integers(0, 2, (count, len(data.classes)), dtype=np.uint8))
    return ImageSplit(images, random.integers(0, len(data.classes), count))


def _timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _available_memory() -> int | None:
    """Memory that is available without swapping, bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
