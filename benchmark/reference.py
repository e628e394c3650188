"""The same federation as a plain PyTorch loop in one process: the oracle of what FLARE must give, and the speed limit.

    python -m benchmark.reference JOB_FOLDER --sites site-1 site-2 … [--site-file site.json] --out adapter.safetensors
"""

import argparse
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from pt_peft.command import command
from pt_peft.adapter_file import adapter_header, save_adapter
from pt_peft.aggregation.base import SiteResult
from pt_peft.backbone import check_digest, weights_file
from pt_peft.data.site_data import SiteData, load_site_data
from pt_peft.errors import UserError
from pt_peft.experiment import Experiment
from pt_peft.site import Site
from pt_peft.tensors import Tensors
from pt_peft.training import LocalTrainer, TrainingResult, pick_device


def make_trainer(experiment: Experiment, site: Site) -> LocalTrainer:
    """A trainer as a simulated site has it, on as many torch threads. Raises UserError."""
    torch.set_num_threads(site.threads or 1)
    weights = weights_file(site)
    check_digest(experiment.backbone, weights)
    return LocalTrainer(experiment, weights, pick_device(site.device))


def load_sites(experiment: Experiment, site: Site, names: list[str]) -> dict[str, SiteData]:
    """The data of every simulated site, by name. Raises UserError."""
    return {name: load_site_data(experiment, site, name, names) for name in names}


@dataclass(frozen=True)
class Federated:
    """What a federation ends with."""

    tensors: Tensors
    """The final aggregate of the exchanged tensors that the rounds have changed, by canonical key."""
    personal: dict[str, Tensors]
    """By site, the tensors that stay there; empty if there are none."""


class Observer(Protocol):
    """Looks at a federation as it runs."""

    def starts(self, round_number: int, site: str, tensors: Tensors) -> None:
        """`site` will train from `tensors`, its own included."""

    def trained(self, round_number: int, site: str, result: TrainingResult) -> None:
        """It has."""


def federate(
    trainer: LocalTrainer,
    sites: Mapping[str, SiteData],
    absent: Collection[tuple[str, int]] = (),
    observer: Observer | None = None,
) -> Federated:
    """All rounds with all `sites`.

    Args:
        absent: site and round (from 0) of those that give no result.
    """
    model, exchange = trainer.model, trainer.exchange
    rounds = trainer.experiment.federation.rounds
    optimizer = trainer.experiment.server_optimizer.start()
    tensors = {key: value for key, value in trainer.initial.items() if key in exchange.specs}
    personal: dict[str, Tensors] = {name: {} for name in sites}
    for round_number in range(rounds):
        aggregator = trainer.experiment.aggregation.start(tensors)
        for name, data in sorted(sites.items()):
            if (name, round_number) in absent:
                continue
            start = {**tensors, **personal[name]}
            if observer:
                observer.starts(round_number, name, start)
            result = trainer.train(name, data.train, start, round_number)
            if observer:
                observer.trained(round_number, name, result)
            sent = {key: result.tensors[key] for key in exchange.trained(round_number)}
            aggregator.add(SiteResult(name, sent, result.num_samples))
            personal[name] = {key: result.tensors[key] for key in model.personal}
        tensors = {**tensors, **optimizer.step(tensors, aggregator.result())}
    return Federated({key: tensors[key] for key in exchange.payload(0, rounds)}, personal)


@command
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.reference", description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path, help="job folder")
    parser.add_argument("--sites", nargs="+", help="names of the sites; the experiment's own if it has some")
    parser.add_argument("--site-file", type=Path, help="the site.json that all simulated sites share")
    parser.add_argument("--out", type=Path, required=True, help="the final adapter")
    options = parser.parse_args(arguments)
    experiment = Experiment.read(options.job / "app" / "config" / "experiment.json")
    site = Site.read(options.site_file) if options.site_file else Site()
    names = options.sites or list(experiment.federation.sites)
    if not names:
        raise UserError("--sites: the experiment names no sites, so they must be given.")
    if not options.out.parent.is_dir():
        raise UserError(f"--out: {options.out.parent} is not a folder.")
    tensors = federate(make_trainer(experiment, site), load_sites(experiment, site, names)).tensors
    save_adapter(options.out, tensors, {**adapter_header(experiment), "round": experiment.federation.rounds})


if __name__ == "__main__":
    sys.exit(main())
