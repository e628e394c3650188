"""Runs a federation as a plain PyTorch loop in one process: FLARE must end with the same adapter, and cannot be faster.

python -m benchmark.oracle.reference JOB_FOLDER --sites site-1 site-2 --out adapter.safetensors
"""

import argparse
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pt_peft.commands.dispatch import command
from pt_peft.data.site_data import SiteData, load_site_data
from pt_peft.environment import own_code
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import Stage, When, sends_model, stages
from pt_peft.federation import transfer
from pt_peft.federation.head_statistics import HeadStatistics
from pt_peft.federation.local_round import LocalRound, local_round, starting_model
from pt_peft.federation.reports import ChoiceReport, StatisticsReport
from pt_peft.federation.server import FederationServer
from pt_peft.federation.site_statistics import answer
from pt_peft.files import check_place
from pt_peft.model.adapter_file import adapter_header, save_adapter
from pt_peft.model.backbone import pinned_weights
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.schema import parse
from pt_peft.statistics.moments import COUNTS
from pt_peft.training.trainer import LocalTrainer, site_device


def make_trainer(experiment: Experiment, site: Site) -> LocalTrainer:
    """A trainer as a simulated site has it, on as many torch threads. Raises UserError."""
    torch.set_num_threads(site.threads or 1)
    return LocalTrainer(experiment, pinned_weights(experiment.backbone, site), site_device(site), compiled=site.compile)


def load_sites(experiment: Experiment, site: Site, names: list[str]) -> dict[str, SiteData]:
    """The data of every simulated site, by name. Raises UserError."""
    return {name: load_site_data(experiment, site, name, names) for name in names}


@dataclass(frozen=True)
class Federated:
    """The end of a federation."""

    tensors: Tensors
    """The final aggregate of the exchanged tensors that the rounds have changed, by canonical key."""
    kept: dict[str, Tensors]
    """Tensors that stay at a site, by its name."""


class Observer(Protocol):
    """Is told of each site's round."""

    def starts(self, round_number: int, site: str, tensors: Tensors) -> None:
        """`site` starts to train from `tensors`, those included that stay with it."""

    def trained(self, round_number: int, site: str, result: LocalRound) -> None:
        """`site` has trained."""


Tamper = Callable[[str, Tensors, Tensors], Tensors]
"""Returns what a site sends, from its name, the tensors that it received and those that it should send."""


def federate(
    trainer: LocalTrainer,
    sites: Mapping[str, SiteData],
    absent: Collection[tuple[str, int | Stage]] = (),
    observer: Observer | None = None,
    tamper: Tamper | None = None,
) -> Federated:
    """Runs all rounds with all `sites`, and the stages of statistics before and after them.

    Args:
        trainer: as all sites have it.
        sites: data by name.
        absent: pairs of site and round (from 0), or stage, without a result.
        observer: is told of each site's round.
        tamper: changes what a site sends.
    """
    exchange, rounds = trainer.exchange, trainer.experiment.federation.rounds
    start = initial_exchanged(trainer.experiment, exchange, trainer.initial)
    server = FederationServer(trainer.experiment, exchange, start)
    kept: dict[str, Tensors] = {name: {} for name in sites}
    weighted = trainer.experiment.training.imbalance == "federation_weights"
    _solve_head(trainer, server, sites, "start", absent)
    for round_number in range(rounds):
        opened = server.start_round(round_number)
        for name, data in sorted(sites.items()):
            if (name, round_number) in absent:
                continue
            payload = server.payload(name, 0, round_number)
            received = transfer.decode_down(trainer.experiment, exchange, name, payload, 0, round_number)
            if observer:
                observer.starts(round_number, name, starting_model(trainer, received, kept[name]))
            counts = server.federation_counts if weighted else None
            result = local_round(
                trainer, name, data.train, received, kept[name], round_number, federation_counts=counts
            )
            if observer:
                observer.trained(round_number, name, result)
            sent = tamper(name, received, result.payload) if tamper else result.payload
            opened.add(name, sent, result.num_samples)
            kept[name] = result.kept
        server.finish_round(opened, len(sites))
    _solve_head(trainer, server, sites, "finish", absent)
    return Federated({key: server.tensors[key] for key in exchange.changed(rounds)}, kept)


def _solve_head(
    trainer: LocalTrainer,
    server: FederationServer,
    sites: Mapping[str, SiteData],
    when: When,
    absent: Collection[tuple[str, int | Stage]],
) -> None:
    """Goes through the stages at one end of the rounds, whose last one gives the aggregate its head."""
    experiment, exchange = trainer.experiment, trainer.exchange
    gathered = HeadStatistics(experiment, exchange, when)
    for stage in stages(experiment):
        if stage.when != when:
            continue
        kind = ChoiceReport if stage.name == "choice" else StatisticsReport
        sent: dict[str, Tensors] = {}
        reports: dict[str, ChoiceReport | StatisticsReport] = {}
        for name in gathered.asked(stage, sorted(sites)):
            if (name, stage) in absent:
                continue
            model = Tensors()
            if sends_model(stage):
                payload = server.payload(name, 0, stage.round_number)
                received = transfer.decode_down(experiment, exchange, name, payload, 0, stage.round_number)
                model = starting_model(trainer, received, {})
            found = answer(trainer, stage, sites[name], model, gathered.down(stage), site=name)
            about = {"seconds": 0.0, "code": own_code().model_dump(), "precision": trainer.precision}
            report = parse(kind, {**found.report, **about}, "report")
            # Rounded as it leaves a site. A pooled baseline has more images than a site may say it has.
            reports[name] = report.checked(experiment) if isinstance(report, ChoiceReport) else report
            sent[name] = gathered.check(stage, found.tensors, reports[name])
        if stage.name == "counts" and when == "start":
            server.class_counts = {name: one[COUNTS] for name, one in sent.items()}
        if made := gathered.take(stage, sent, reports):
            server.tensors = {**server.tensors, **gathered.head(made)}


def greatest_difference(one: Tensors, other: Tensors) -> float:
    """The greatest difference between values of tensors of the same key; infinite if the keys differ."""
    if one.keys() != other.keys():
        return float("inf")
    return max(float(np.abs(value - other[key]).max()) for key, value in one.items())


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.oracle.reference", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("job", type=Path, help="job folder")
    parser.add_argument("--sites", nargs="+", help="names of the sites; by default the experiment's own")
    parser.add_argument("--site-file", type=Path, help="the site.json that all simulated sites share")
    parser.add_argument("--out", type=Path, required=True, help="the final adapter")
    options = parser.parse_args(arguments)
    experiment = Experiment.read(options.job / "app" / "config" / "experiment.json")
    site = Site.read(options.site_file) if options.site_file else Site()
    names = options.sites or list(experiment.federation.sites)
    if not names:
        raise UserError("--sites: the experiment names no sites, so they must be given.")
    named, needed = set(experiment.federation.sites), experiment.federation.min_sites
    if named and set(names) != named:
        raise UserError(
            f"--sites: {' '.join(sorted(names))}; the experiment's, {' '.join(sorted(named))}, would be right."
        )
    if len(set(names)) < max(needed, len(names)):
        raise UserError(
            f"--sites: {' '.join(names)}; {needed} or more different ones, by federation.min_sites, would be right."
        )
    check_place(options.out)
    trainer = make_trainer(experiment, site)
    tensors = federate(trainer, load_sites(experiment, site, names)).tensors
    header = adapter_header(experiment, {trainer.precision})
    save_adapter(options.out, tensors, {**header, "round": experiment.federation.rounds})


if __name__ == "__main__":
    sys.exit(main())
