"""Result folders as the sweep leaves them, with chosen accuracies."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from pt_peft.training.metrics import evaluate_predictions

PARAMETERS = {"linear_probe": 1_000, "vpt_shallow": 3_000, "bitfit": 10_000, "lora": 30_000, "full": 1_000_000}
AXES = ("domain", "data", "partition", "backbone", "aggregation")
ONLY_FINISHED = ("exchanged_parameters", "wire_bytes", "bytes_in", "bytes_out", "rounds", "final", "verification")
SITES = ("north", "south")
PROVENANCE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "versions": {"python": "3.11.2", "torch": "2.15.0"},
    "machine": {"cpu": "a processor", "cores": 2, "memory_gib": 8.0},
}


def accuracy_of(method: str, slope: float, middle: float = 0.6) -> float:
    """On the line of `slope` points a decade that has `middle` at 10^4.5 parameters."""
    return middle + slope / 100 * (np.log10(PARAMETERS[method]) - 4.5)


def logits_of(labels: np.ndarray, accuracy: float, seed: object, classes: int = 4) -> np.ndarray:
    """float16 (N,K), of which close to a share `accuracy` is right."""
    generator = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    logits = generator.normal(size=(len(labels), classes))
    right = generator.random(len(labels)) < accuracy
    wrong = (labels + generator.integers(1, classes, len(labels))) % classes
    logits[np.arange(len(labels)), np.where(right, labels, wrong)] += 6
    return logits.astype(np.float16)


def scalars(logits: np.ndarray, labels: np.ndarray, task: str = "multiclass") -> dict:
    """As a cell has them."""
    return evaluate_predictions(torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(labels), task)


def write_suite(
    folder: Path,
    *,
    panels=(("in-domain", "cifar10", "iid", 4.0),),
    backbones=(("imagenet", 0.6),),
    methods=tuple(PARAMETERS),
    seeds=(0, 1, 2),
    images: int = 300,
    baselines: bool = True,
    tuning: bool = True,
    aggregations=("mean",),
) -> Path:
    """A suite of all combinations; a panel is domain, data, partition and slope, a backbone its name and middle accuracy."""
    for name in ("cells", "baselines", "tuning"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    searches = []
    for domain, data, partition, slope in panels:
        for backbone, middle in backbones:
            for aggregation in aggregations:
                axes = dict(zip(AXES, (domain, data, partition, backbone, aggregation), strict=True))
                for seed in seeds:
                    labels = np.random.default_rng(seed).integers(4, size=images)
                    for method in methods:
                        logits = logits_of(labels, accuracy_of(method, slope, middle), (axes, method, seed))
                        write_cell(folder, {**axes, "method": method, "seed": seed}, logits, labels)
                    if baselines:
                        _write_baseline(folder, axes, seed, labels)
                searches += [_search(axes, method) for method in methods]
    if tuning:
        _write(folder / "tuning.json", searches)
    return folder


def write_cell(folder: Path, axes: dict, logits: np.ndarray, labels: np.ndarray, task: str = "multiclass") -> dict:
    """One finished cell, with its predictions; returns its JSON."""
    name = "-".join(str(value) for value in axes.values())
    site = (np.arange(len(labels)) % len(SITES)).astype(np.uint8)
    pooled = scalars(logits, labels, task)
    by_site = {one: scalars(logits[site == i], labels[site == i], task) for i, one in enumerate(SITES)}
    sent = PARAMETERS[axes["method"]]
    rounds = [
        {
            "round": index,
            "seconds": 1.5,
            "bytes_in": 8 * sent,
            "bytes_out": 8 * sent,
            "sites": {one: {"num_samples": 50, "train_loss": 1.0, "seconds": 0.7, "val": None} for one in SITES},
            "val": {**pooled, "balanced_accuracy": pooled["balanced_accuracy"] * share},
        }
        for index, share in enumerate((0.4, 0.7, 0.9))
    ]
    cell = {
        "status": "finished",
        "reason": None,
        "name": name,
        "axes": axes,
        "engine": "reference",
        "experiment": {"select_by": "balanced_accuracy", "data": {"task": task}},
        "exchanged_parameters": sent,
        "wire_bytes": 48 * sent,
        "bytes_in": 24 * sent,
        "bytes_out": 24 * sent,
        "rounds": rounds,
        "final": {"val": {"mean": pooled, "sites": by_site}, "test": {"pooled": pooled, "sites": by_site}},
        "seconds": {"total": 10.0, "training": 8.0},
        "peak_memory_bytes": 10**9,
        "verification": {"engine": "flare", "max_difference": 3e-8} if axes["seed"] == 0 else None,
        "provenance": PROVENANCE,
    }
    _write(folder / "cells" / f"{name}.json", cell)
    np.savez_compressed(folder / "cells" / f"{name}.npz", logits=logits, labels=labels, site=site)
    return cell


def fail_cell(folder: Path, name: str, reason: str) -> None:
    """Makes a finished cell a failed one."""
    path = folder / "cells" / f"{name}.json"
    _write(path, {**json.loads(path.read_text()), "status": "failed", "reason": reason, **dict.fromkeys(ONLY_FINISHED)})
    path.with_suffix(".npz").unlink()


def _write_baseline(folder: Path, axes: dict, seed: int, labels: np.ndarray) -> None:
    rows = []
    for row, accuracy in (("pooled", 0.8), *((f"local {site}", 0.5) for site in SITES), ("majority class", 0.25)):
        found = scalars(logits_of(labels, accuracy, (axes, row, seed)), labels)
        rows.append({"name": row, "test": {"pooled": found, "sites": dict.fromkeys(SITES, found)}})
    name = "-".join(str(value) for value in (*axes.values(), seed))
    head = {"status": "finished", "reason": None, "name": name, "axes": {**axes, "method": "lora", "seed": seed}}
    tail = {"experiment": {}, "seconds": {"total": 20.0}, "peak_memory_bytes": 1, "provenance": PROVENANCE}
    _write(folder / "baselines" / f"{name}.json", {**head, **tail, "rows": rows})


def _search(axes: dict, method: str) -> dict:
    trials = [
        {"learning_rate": rate, "head_learning_rate": None, "options": {}, "status": "finished", "val": val}
        for rate, val in ((1e-4, 0.4), (1e-3, 0.6), (1e-2, 0.5))
    ]
    return {"axes": {**axes, "method": method}, "budget": 3, "trials": trials, "chosen": 1}


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
