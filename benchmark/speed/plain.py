"""The plain loop: one process, one site after the other.

python -m benchmark.speed.plain WORK_FOLDER
"""

import os
import sys
from pathlib import Path

import torch

from benchmark.speed.bare import Bare
from benchmark.speed.marks import mark


def main(folder: Path) -> None:
    """All rounds."""
    mark("imported")
    bare = Bare(folder, threads=len(os.sched_getaffinity(0)))
    sites = {site: bare.images(site) for site in bare.work["sites"]}
    state = bare.state()
    for number in range(bare.work["rounds"]):
        results, weights = [], []
        for site, (images, labels) in sites.items():
            bare.load(state)
            loss = bare.train(site, images, labels)
            print(f"round {number + 1} {site} loss {loss:.4f}", flush=True)
            results.append(bare.state())
            weights.append(len(labels))
        state = {
            key: sum(weight * result[key] for weight, result in zip(weights, results, strict=True)) / sum(weights)
            for key in state
        }
    torch.save(state, "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
