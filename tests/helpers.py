"""What several tests call."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmark.oracle.reference import greatest_difference
from pt_peft.data.items import SPLITS
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.preprocessing import Decoding
from pt_peft.model.adapter_file import load_adapter
from pt_peft.worker.host_lookup import HOST_VARIABLE
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.request_handler import RequestHandler
from pt_peft.worker.requests import Opening

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "jobs"
TINY_VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
"""Arguments of the smallest backbone of the tests."""


def changed(experiment: Experiment, **fields) -> Experiment:
    """`experiment` with nested fields replaced: ``changed(e, federation={"rounds": 3})``."""
    content = experiment.model_dump(mode="json")
    for name, value in fields.items():
        content[name] = {**(content[name] or {}), **value} if isinstance(value, dict) else value
    return Experiment.model_validate_json(json.dumps(content))


def opened(experiment, site, folder) -> RequestHandler:
    """A worker's handler for `site-1` of two sites."""
    handler = RequestHandler()
    opening: Opening = {
        "experiment": experiment.model_dump(mode="json"),
        "site": site.model_dump(mode="json"),
        "name": "site-1",
        "names": ["site-1", "site-2"],
        "run_dir": str(folder),
        "threads": 1,
        "continues": None,
    }
    handler.open(opening, {})
    return handler


def gone(pid: int) -> bool:
    """Whether a process ends within five seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def at_size(size: int, **fields) -> Decoding:
    """The decoding to images of side `size`, pixels; keywords replace other fields."""
    defaults = {"channels": "RGB", "intensity": "type", "fit": "pad", "pad_value": (0, 0, 0)}
    resizing = {"interpolation": "bicubic", "antialias": True}
    return Decoding.model_validate({**defaults, **resizing, "image_size": size, **fields})


def simulated(workspace: SimpleNamespace) -> SimpleNamespace:
    """FLARE's engine in a simulation, with nothing but a workspace, and arguments that give no GPUs."""
    from pt_peft_flare.flare_internals import SIMULATION  # the contract tests also run without FLARE

    module, _, name = SIMULATION.names[0].partition(":")
    engine = type(name, (SimpleNamespace,), {"__module__": module, "__qualname__": name})
    return engine(get_workspace=lambda: workspace, args=SimpleNamespace(gpu=None))


def split_counts(images) -> dict[str, int]:
    """Images of each split of a site's images."""
    return {split: len(images.items(split)) for split in SPLITS}


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
        """What left, or was held back."""
        return [line for line in self._ledger(site) if line["task"] not in ("open", "counted")]

    def asked(self, site: str) -> dict:
        """What the ledger says that the job asks, with what the site has counted for it if it came to that."""
        first, second = self._ledger(site)[:2]
        assert first["task"] == "open"
        return first["asks"] | {name: second[name] for name in ("exchange", "images") if second["task"] == "counted"}

    def _ledger(self, site: str) -> list[dict]:
        path = self.workspace / site / "simulate_job" / "egress.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


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


def assert_equal(adapter: Path, expected: dict) -> None:
    """That the adapter file has just the tensors `expected`, to 1e-6."""
    tensors, _ = load_adapter(adapter)
    assert tensors.keys() == expected.keys()
    assert greatest_difference(tensors, expected) <= 1e-6
