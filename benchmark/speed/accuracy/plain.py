"""The task as a plain loop: one process, one site after the other. Writes each round's aggregate.

python -m benchmark.speed.accuracy.plain TASK_FOLDER
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmark.speed.accuracy.learner import Learner
from benchmark.speed.bare import State
from benchmark.speed.marks import mark

AGGREGATE = "aggregate.safetensors"


def main(folder: Path) -> None:
    """Runs all rounds."""
    mark("imported")
    learner = Learner(folder, threads=len(os.sched_getaffinity(0)))
    sites = {site: (learner.images(site), learner.images(f"{site}.val")) for site in learner.work["sites"]}
    state = learner.state()
    for number in range(learner.work["rounds"]):
        results: list[tuple[int, State]] = []
        for site, ((images, labels), validation) in sites.items():
            learner.load(state)
            accuracy = learner.balanced_accuracy(*validation)
            loss = learner.train_round(site, images, labels, number)
            print(f"round {number + 1} {site} loss {loss:.4f}, before it balanced accuracy {accuracy:.4f}", flush=True)
            results.append((len(labels), learner.state()))
        total = sum(weight for weight, _ in results)
        state = {key: torch.stack([result[key] * weight for weight, result in results]).sum(0) / total for key in state}
        save_file(state, f"new-{AGGREGATE}")
        os.replace(f"new-{AGGREGATE}", AGGREGATE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
