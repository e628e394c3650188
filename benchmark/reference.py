"""The same federation as a plain PyTorch loop in one process: the oracle of what FLARE must give, and the speed limit.

    python -m benchmark.reference JOB_FOLDER --sites site-1 site-2 … [--site-file site.json] --out adapter.safetensors
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from benchmark.command import command
from pt_peft.adapter_file import save_adapter
from pt_peft.backbone import check_digest, weights_file
from pt_peft.data.site_data import SiteData, load_site_data
from pt_peft.errors import UserError
from pt_peft.experiment import Experiment
from pt_peft.method import exchanged_state
from pt_peft.site import Site
from pt_peft.tensors import Tensors
from pt_peft.training import LocalTrainer, pick_device
from pt_peft_flare.aggregators.weighted_mean import WeightedMean


def make_trainer(experiment: Experiment, site: Site) -> LocalTrainer:
    """A trainer as a simulated site has it, on as many torch threads. Raises UserError."""
    torch.set_num_threads(site.threads or 1)
    weights = weights_file(site)
    check_digest(experiment.backbone, weights)
    return LocalTrainer(experiment, weights, pick_device(site.device))


def load_sites(experiment: Experiment, site: Site, names: list[str]) -> dict[str, SiteData]:
    """The data of every simulated site, by name. Raises UserError."""
    return {name: load_site_data(experiment, site, name, names) for name in names}


def federate(trainer: LocalTrainer, sites: Mapping[str, SiteData]) -> Tensors:
    """All rounds with all `sites`. Returns the final aggregate by canonical key."""
    tensors = exchanged_state(trainer.model)
    for round_number in range(trainer.experiment.federation.rounds):
        mean = WeightedMean()
        for name, data in sorted(sites.items()):
            result = trainer.train(name, data.train, tensors, round_number)
            mean.add(result.tensors, result.num_samples)
        tensors = mean.result()
    return tensors


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
    tensors = federate(make_trainer(experiment, site), load_sites(experiment, site, names))
    save_adapter(options.out, tensors, {"experiment": experiment.name, "round": experiment.federation.rounds})


if __name__ == "__main__":
    sys.exit(main())
