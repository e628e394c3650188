"""The reference work in Flower's simulation (https://flower.ai), by its FedAvg, with all sites at the same time.

    python -m benchmark.speed.flower WORK_FOLDER

Needs ``flwr[simulation]`` in the Python that runs it.
"""

# pyright: reportMissingImports=false
# Flower has an environment of its own: its pins do not resolve together with this project's.

import os
import sys
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmark.speed.bare import Bare
from benchmark.speed.marks import mark

FOLDER = Path(os.environ.get("PT_PEFT_SPEED_WORK", sys.argv[-1]))

client_app = ClientApp()
_bare: list[Bare] = []
"""The model, which a Ray actor keeps across rounds; empty before its first."""
_images: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
"""Images and labels of the sites that this Ray actor has trained, by name."""


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one site in one round."""
    if not _bare:
        mark("imported")
        _bare.append(Bare(FOLDER, threads=1))
    bare = _bare[0]
    site = bare.work["sites"][context.node_config["partition-id"]]
    if site not in _images:
        _images[site] = bare.images(site)
    images, labels = _images[site]
    bare.load(message.content["arrays"].to_torch_state_dict())
    loss = bare.train(site, images, labels)
    metrics = MetricRecord({"loss": loss, "num-examples": len(labels)})
    return Message(content=RecordDict({"arrays": ArrayRecord(bare.state()), "metrics": metrics}), reply_to=message)


server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Runs all rounds and writes the final tensors."""
    bare = Bare(FOLDER, threads=1)
    sites = len(bare.work["sites"])
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(bare.state()),
        num_rounds=bare.work["rounds"],
        train_config=ConfigRecord({}),
    )
    torch.save(result.arrays.to_torch_state_dict(), "final.pt")


def main() -> None:
    """Runs the simulation."""
    os.environ["PT_PEFT_SPEED_WORK"] = str(FOLDER)
    sites = len(list(FOLDER.glob("*.npz")))
    share = len(os.sched_getaffinity(0)) / sites
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=sites,
        backend_config={
            "client_resources": {"num_cpus": int(share * 100) / 100 if share < 1 else int(share), "num_gpus": 0.0}
        },
    )


if __name__ == "__main__":
    main()
