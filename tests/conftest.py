"""Fixtures of all tests: small experiments, the real data outside the repository, a worker host."""

import json
import os
from pathlib import Path

import pytest

from helpers import ROOT, TINY_VIT
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.place import VARIABLES

SHARED = (ROOT / os.environ.get("PT_PEFT_SHARED", "../shared")).resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: not item.path.name.startswith("test_simulator"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights; skips where there is none."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data: PT_PEFT_SHARED ({SHARED}) has no folder 'data'")
    return SHARED / "data"


@pytest.fixture(autouse=True, scope="session")
def cache_folder(tmp_path_factory) -> Path:
    """Keeps what the tests cache out of the user's home."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Weights of a ViT small enough to train in no time."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, **TINY_VIT)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_weights) -> Experiment:
    """LoRA and prompts on the tiny ViT and a few generated lesions."""
    return Experiment.model_validate_json(
        json.dumps(
            {
                "name": "tiny",
                "backbone": {
                    "name": "vit_tiny_patch16_224",
                    "kwargs": TINY_VIT,
                    "image_size": 32,
                    "sha256": sha256_of(tiny_weights),
                },
                "data": {
                    "source": "lesions",
                    "classes": ["a", "b", "c", "d"],
                    "images_per_site": {"train": 40, "val": 16, "test": 16},
                    "augment": ["flip"],
                },
                "method": {"name": "lora_vpt", "options": {"vpt_deep": {"num_prompts": 3}}},
                "training": {"batch_size": 16},
                "federation": {"rounds": 2, "round_timeout_s": 120, "site_timeout_s": 60},
            }
        )
    )


@pytest.fixture(scope="session")
def site(tiny_weights) -> Site:
    """A site with those weights, which allows anything."""
    return Site(backbone=str(tiny_weights), limits=Limits.open())


@pytest.fixture
def workspace(site, tmp_path) -> Path:
    """A workspace of FLARE's simulator in which all sites are so."""
    from pt_peft_flare.job_folder import write_workspace  # the contract tests also run without FLARE

    write_workspace(site, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture(scope="session")
def shared_host(tmp_path_factory):
    """A worker host that every simulation of the tests uses, which saves each the imports."""
    host = WorkerHost(tmp_path_factory.mktemp("host") / "host.log")
    yield host
    host.close()


@pytest.fixture(scope="session")
def two_gpu_host(tmp_path_factory):
    """A worker host on a machine that seems to have two GPUs. Its folder's file ``asked`` lists who asked for them."""
    folder = tmp_path_factory.mktemp("host with GPUs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tests" / "fake_gpus")  # a host passes its path on
        patch.setenv("ASKED", str(folder / "asked"))
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        host = WorkerHost(folder / "host.log")
    yield host, folder
    host.close()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; skips where it is missing."""
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    import chromium

    if not (chromium.CHROMIUM and chromium.DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    with chromium.headless() as opened:
        opened.execute_cdp_cmd("Network.enable", {})
        yield opened
