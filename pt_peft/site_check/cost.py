"""What a round will cost the site: disk, memory, bytes and time."""

import math
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from pt_peft.data.cache_space import pixel_bytes
from pt_peft.data.site_data import ImageSplit
from pt_peft.exchange.round_bytes import round_bytes
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.model.backbone import pinned_weights
from pt_peft.site_check.findings import Findings
from pt_peft.training.trainer import LocalTrainer, pick_device

TIMED_STEPS = 3


def cache_cost(experiment: Experiment, site: Site, images: int, findings: Findings) -> JsonValue:
    """Bytes of the cache beside what there is of disk and memory. An image in the cache takes 3 bytes a pixel."""
    needed = pixel_bytes(images, experiment.backbone.image_size)
    folder = site.cache_folder()
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    memory = _available_memory()
    if not (there.is_dir() and os.access(there, os.W_OK)):
        findings.error(
            "cache folder",
            f"{there} is not a folder that can be written; set 'cache' in site.json to a folder that can.",
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
            f"the cache's {needed / 1e9:.2f} GB do not fit into the {memory / 1e9:.2f} GB of memory available: every epoch will "
            "read from the disk.",
        )
    return {
        "folder": str(folder),
        "bytes": needed,
        "disk_free": free,
        "limit": int(site.cache_gb * 1e9),
        "memory_free": memory,
    }


def round_cost(experiment: Experiment, site: Site, name: str, train: int, val: int) -> JsonValue:
    """What a site sends and receives in the first round (bytes of the payloads), and the seconds and the memory that it takes,
    from a few steps of the real model on noise, on this machine.

    Args:
        name: of the site, which may train LoRA at a rank of its own.
        train: training images of the site.
        val: its validation images.

    Raises:
        UserError: if the weights or the device are not there, or the method does not fit.
        BackboneMismatch: for other weights.
        OutsideLimits: if more bytes would leave than the site allows.
    """
    weights = pinned_weights(experiment.backbone, site)
    torch.set_num_threads(site.threads or os.cpu_count() or 1)
    trainer = LocalTrainer(experiment, weights, pick_device(site.device))
    exchange = trainer.exchange.at_rank(experiment.federation.lora_ranks.get(name))
    nbytes = round_bytes(exchange, experiment.payload, 0, encrypted=experiment.encryption is not None)
    site.limits.check_bytes(experiment, exchange, 0)
    batch = min(experiment.training.batch_size, train)
    _timed(lambda: trainer.train("check", _noise(experiment, batch), {}, 0))  # the first step allocates
    epochs = experiment.training.local_epochs
    steps = math.ceil(train / batch) * epochs
    step = _timed(lambda: trainer.train("check", _noise(experiment, batch * TIMED_STEPS), {}, 0)) / (
        TIMED_STEPS * epochs
    )
    evaluation = _timed(lambda: trainer.evaluate({}, _noise(experiment, batch))) / batch
    return {
        "bytes_in": nbytes.down,
        "bytes_out": nbytes.up,
        "steps": steps,
        "seconds": round(steps * step + val * evaluation, 3),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "process_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _noise(experiment: Experiment, count: int) -> ImageSplit:
    random, data, size = np.random.default_rng(0), experiment.data, experiment.backbone.image_size
    images = random.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    if data.task == "multilabel":
        return ImageSplit(images, random.integers(0, 2, (count, len(data.classes)), dtype=np.uint8))
    return ImageSplit(images, random.integers(0, len(data.classes), count))


def _timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _available_memory() -> int | None:
    """Bytes that processes can still have without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
