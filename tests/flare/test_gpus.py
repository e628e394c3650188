"""GPUs that the simulator hands out reach the workers of its sites."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.recipe import SimEnv

from helpers import simulated
from pt_peft.environment import VISIBLE
from pt_peft.worker.host_lookup import HOST_VARIABLE
from pt_peft.worker.place import ORDER
from pt_peft_flare.flare_internals import SITE_GPUS
from pt_peft_flare.gpus import see_gpus_of_first_site
from pt_peft_flare.recipe import PeftRecipe


def test_each_simulated_site_trains_on_the_gpu_of_its_group(two_gpu_host, tiny, tiny_weights, tmp_path, monkeypatch):
    """``SimEnv`` calls the simulator with ``-gpu``. Nothing but the simulator tells the sites."""
    monkeypatch.setenv(HOST_VARIABLE, two_gpu_host[0].socket)
    monkeypatch.delenv(VISIBLE, raising=False)
    recipe = PeftRecipe.from_experiment(tiny, site={"backbone": str(tiny_weights), "limits": None})
    recipe.execute(SimEnv(num_clients=2, gpu_config="1,0", workspace_root=str(tmp_path)))
    for site, number in (("site-1", 1), ("site-2", 0)):
        log = (tmp_path / "tiny" / site / "simulate_job" / "worker.log").read_text()
        assert f"site {site} computes on cuda:0 (fake {number}, {VISIBLE} {number})\n" in log


@pytest.fixture
def environment(monkeypatch):
    for name in (VISIBLE, ORDER):
        monkeypatch.setenv(name, "as before")
    return os.environ


def context(gpu: str | None) -> Any:
    engine = simulated(SimpleNamespace())
    engine.args.gpu = gpu
    return SimpleNamespace(get_engine=lambda: engine)


@pytest.mark.parametrize(
    ("given", "seen"), [("1", "1"), ("3,0", "3"), ("[2,3], 1", "2,3"), (None, "as before"), ("", "as before")]
)
def test_the_simulated_server_sees_the_first_sites_gpus(given, seen, environment):
    see_gpus_of_first_site(context(given))
    assert environment[VISIBLE] == seen
    assert environment[ORDER] == ("as before" if seen == "as before" else "PCI_BUS_ID")


def test_with_another_flare_the_server_sees_what_it_saw(environment, monkeypatch, caplog):
    monkeypatch.setattr(SITE_GPUS, "names", ("nvflare.gone:Gone",))
    monkeypatch.setattr(SITE_GPUS, "_warned", False)
    see_gpus_of_first_site(context("1"))
    assert environment[VISIBLE] == "as before"
    assert SITE_GPUS.otherwise in caplog.text
