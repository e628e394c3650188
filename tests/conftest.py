"""What the tests share: small experiments, the real data outside the repository, and FLARE's simulator."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pt_peft.experiment import Experiment
from pt_peft.files import sha256_of
from pt_peft.worker.client import HOST_VARIABLE, WorkerHost

ROOT = Path(__file__).parent.parent
SHARED = (ROOT / os.environ.get("PT_PEFT_SHARED", "../shared")).resolve()

TINY_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


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


def changed(experiment: Experiment, **fields) -> Experiment:
    """`experiment` with nested fields replaced: ``changed(e, federation={"rounds": 3})``."""
    content = experiment.model_dump(mode="json")
    for name, value in fields.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    return Experiment.model_validate_json(json.dumps(content))


@pytest.fixture(scope="session")
def shared_host(tmp_path_factory):
    """A worker host that every simulation of the tests uses, which saves each the imports."""
    host = WorkerHost(tmp_path_factory.mktemp("host") / "host.log")
    yield host
    host.close()


@dataclass
class Run:
    """A finished ``nvflare simulator``."""

    workspace: Path
    exit_code: int
    output: str

    @property
    def server(self) -> Path:
        return self.workspace / "server" / "simulate_job"

    @property
    def metrics(self) -> dict:
        return json.loads((self.server / "metrics.json").read_text())

    def ledger(self, site: str) -> list[dict]:
        return [json.loads(line) for line in (self.workspace / site / "simulate_job" / "egress.jsonl").read_text().splitlines()]


def simulate(
    job: Path,
    workspace: Path | None,
    *options: str,
    cwd: Path,
    host: WorkerHost | None = None,
    nvflare: tuple[str, ...] = (str(Path(sys.executable).parent / "nvflare"),),
    timeout: int = 300,
) -> Run:
    """Runs the job as a user would; `workspace` None leaves it to FLARE's default in `cwd`."""
    command = [*nvflare, "simulator", str(job), *options]
    if workspace:
        command += ["-w", str(workspace)]
    environment = {**os.environ, **({HOST_VARIABLE: host.socket} if host else {})}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    return Run(workspace or cwd / "simulator_workspace", done.returncode, done.stdout + done.stderr)
