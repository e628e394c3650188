"""A site's training script for FLARE's client API."""

import sys
from pathlib import Path

import nvflare.client as flare

from benchmark.speed.bare import Bare
from benchmark.speed.flare_stock.adapters import flat
from benchmark.speed.marks import mark


def main(folder: Path) -> None:
    """Trains in every round until FLARE ends the run."""
    mark("imported")
    flare.init()
    site = flare.get_site_name()
    bare = Bare(folder, threads=1)
    images, labels = bare.images(site)
    while flare.is_running():
        received = flare.receive()
        if received is None or received.params is None:
            break  # the run has ended
        bare.load({name: received.params[flat(name)] for name in bare.trained})
        loss = bare.train(site, images, labels)
        params = {flat(name): value for name, value in bare.state().items()}
        flare.send(
            flare.FLModel(params=params, metrics={"accuracy": -loss}, meta={"NUM_STEPS_CURRENT_ROUND": len(labels)})
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
