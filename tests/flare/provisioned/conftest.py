"""One provisioned federation of three sites, in processes of its own, for all tests here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lead import Lead, free_port
from link import Link

from benchmark.federation.provisioned import Federation
from helpers import changed
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import FULL, METHODS, Limits
from pt_peft.experiment.site import Site
from pt_peft.presets import demo

SITES = ("hospital-1", "hospital-2", "hospital-3")
FEW_IMAGES = Limits(min_train_images=16, methods=(*METHODS, FULL), secret_draws=False)
"""The defaults, but for jobs that take seconds, for full fine-tuning, and for comparison with the oracle."""
TAMPERED = Path(__file__).parent / "tampered"


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    """Seconds of training a round, so that a fault falls into it."""
    return changed(
        demo("lora_vpt")[0],
        data={"images_per_site": {"train": 96, "val": 16, "test": 16}},
        federation={"rounds": 3, "min_sites": 2, "round_timeout_s": 120, "site_timeout_s": 100},
    )


@pytest.fixture(scope="session")
def quick(experiment) -> Experiment:
    """As short as a round can be."""
    return changed(experiment, data={"images_per_site": {"train": 16, "val": 16, "test": 16}})


@pytest.fixture(scope="session")
def lead(tmp_path_factory) -> Iterator[Lead]:
    """The lead of three hospitals, each with a line that can be cut. hospital-3's software is `tampered` with, which
    changes nothing until its ``faults.json`` says so."""
    folder = tmp_path_factory.mktemp("federation")
    port = free_port()
    links = {name: Link(port) for name in SITES}
    sites = {name: Site(threads=1, cache=str(folder / "cache"), limits=FEW_IMAGES) for name in SITES}
    federation = Federation(folder, sites, port, {name: link.port for name, link in links.items()})
    path = os.pathsep.join(filter(None, [str(TAMPERED), os.environ.get("PYTHONPATH")]))
    federation.environment["hospital-3"] = {"PYTHONPATH": path}
    try:
        federation.start()
        lead = Lead(federation, links, folder)
        federation.wait_for(lead.session)
        yield lead
        lead.session.close()
    finally:
        federation.close()
