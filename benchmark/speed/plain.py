"""The reference work as a plain loop: one process, one site after the other.

python -m benchmark.speed.plain WORK_FOLDER
"""

import os
import sys
from pathlib import Path

import torch

from benchmark.speed.bare import Bare, State
from benchmark.speed.marks import mark


def main(folder: Path) -> None:
    """Runs all rounds and writes the final tensors."""
    mark("imported")
    bare = Bare(folder, threads=len(os.sched_getaffinity(0)))
    sites = {site: bare.images(site) for site in bare.work["sites"]}
    state = bare.state()
    for number in range(bare.work["rounds"]):
        results: list[tuple[int, State]] = []
        for site, (images, labels) in sites.items():
            bare.load(state)
            loss = bare.train(site, images, labels)
            print(f"round {number + 1} {site} loss {loss:.4f}", flush=True)
            results.append((len(labels), bare.state()))
        total = sum(weight for weight, _ in results)
        state = {key: torch.stack([result[key] * weight for weight, result in results]).sum(0) / total for key in state}
    torch.save(state, "final.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
