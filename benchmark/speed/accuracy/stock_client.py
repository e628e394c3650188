"""A site's training script for FLARE's client API, as FLARE's own examples are: receive, evaluate, train, send."""

import sys
from pathlib import Path

import nvflare.client as flare
import torch

from benchmark.speed.accuracy.learner import Learner
from benchmark.speed.flare_stock.adapters import flat
from benchmark.speed.marks import mark


def main(folder: Path, sends: str, rate_factor: float) -> None:
    """Trains in every round until FLARE ends the run.

    Args:
        folder: the task's.
        sends: ``whole``, the model's ``state_dict()``, or ``trained``, the tensors that get gradients.
        rate_factor: factor of the adapters' learning rate.
    """
    mark("imported")
    flare.init()
    site = flare.get_site_name()
    learner = Learner(folder, threads=1)
    learner.work["learning_rate"] *= rate_factor
    images, labels = learner.images(site)
    validation = learner.images(f"{site}.val")
    named = learner.model.state_dict() if sends == "whole" else learner.trained
    keys = {name: f"model.{name}" if sends == "whole" else flat(name) for name in named}
    while flare.is_running():
        received = flare.receive()
        if received is None or received.params is None:
            break  # the run has ended
        values = {name: torch.as_tensor(received.params[key]) for name, key in keys.items()}
        learner.model.load_state_dict(values, strict=sends == "whole")
        accuracy = learner.balanced_accuracy(*validation)
        learner.train_round(site, images, labels, received.current_round or 0)
        state = learner.model.state_dict()
        params = {key: state[name].clone() for name, key in keys.items()}
        meta = {"NUM_STEPS_CURRENT_ROUND": len(labels)}
        flare.send(flare.FLModel(params=params, metrics={"accuracy": accuracy}, meta=meta))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
