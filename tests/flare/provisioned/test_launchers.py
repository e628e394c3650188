"""Jobs under FLARE's launchers of batch jobs and pods, in clusters that `stand_ins` stand in for."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lead import edit, free_port

from benchmark.federation.lead import Lead
from benchmark.federation.provisioned import Federation
from helpers import changed
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft_flare.__main__ import main
from pt_peft_flare.ledger import FILE_NAME

pytestmark = pytest.mark.slow
SITES = ("hospital-1", "hospital-2", "hospital-3")
STAND_INS = Path(__file__).parent / "stand_ins"
SLURM = ("sbatch", "squeue", "sacct", "scancel")
IN_BATCH_JOBS = ("server", "hospital-1")
IN_PODS = "hospital-2"


class Clusters(Federation):
    """A federation whose server and first site start their jobs by Slurm, and whose second site by Kubernetes."""

    def __init__(self, folder: Path):
        """Provisions the kits, and prepares them as ``nvflare deploy prepare`` does."""
        site = Site(threads=1, cache=str(folder / "cache"), limits=Limits(min_train_images=16))
        super().__init__(folder, dict.fromkeys(SITES, site), free_port())
        self._prepared: dict[str, Path] = {}
        self._commands: dict[str, list[str]] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        for name in IN_BATCH_JOBS:
            kit = self._prepare(name, self._slurm(folder / "slurm" / name))
            self._commands[name] = ["bash", str(kit / "startup" / "start_slurm.sh")]
        kit = self._prepare(IN_PODS, self._kubernetes())
        edit_internal_host(kit, "localhost")
        (kit / "local" / "study_runtime.yaml").write_text(
            "format_version: 2\nstudies: { default: { container: { image: pt-peft } } }\n"
        )
        chart = yaml.safe_load((kit / "helm_chart" / "values.yaml").read_text())
        self._commands[IN_PODS] = [*chart["command"], *chart["args"], f"uid={chart['siteName']}"]  # by its template
        self.pods = kit.with_name(f"{kit.name}-pods")  # by its name `processes` finds them
        self.pods.mkdir()
        path = os.environ.get("PYTHONPATH", "")
        self.environment[IN_PODS] = {
            "PYTHONPATH": os.pathsep.join([str(STAND_INS), path]), "IMAGE_PATH": path, "PODS": str(self.pods)
        }  # fmt: skip

    def kit(self, name: str) -> Path:
        """Returns the start-up kit, as it was prepared."""
        return getattr(self, "_prepared", {}).get(name) or super().kit(name)

    def start(self, *names: str) -> None:
        """Starts the server and the sites as the prepared kits say."""
        for name in names or ("server", *self.sites):
            if name not in self._commands:
                super().start(name)
                continue
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            with open(self.kit(name) / "start.log", "ab") as log:
                self._started.append(subprocess.Popen(
                    self._commands[name], env={**os.environ, "PATH": path, **self.environment.get(name, {})},
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                ))  # fmt: skip

    def close(self) -> None:
        """Kills all processes."""
        super().close()
        for process in self._started:
            process.wait()

    def _prepare(self, name: str, config: dict[str, Any]) -> Path:
        file, output = self._folder / f"{name}.yaml", self._output(name)
        file.write_text(yaml.safe_dump(config))
        self._run("nvflare", "deploy", "prepare", str(self.kit(name)), "--config", str(file), "--output", str(output))
        self._prepared[name] = output
        return output

    def _output(self, name: str) -> Path:
        return self._folder / "prepared" / name

    def _slurm(self, programs: Path) -> dict[str, Any]:
        programs.mkdir(parents=True)
        for name in SLURM:
            shutil.copy(STAND_INS / "slurm", programs / name)
            (programs / name).chmod(0o755)
        python = programs / "python"  # with what would be installed on a compute node
        python.write_text(f'#!/bin/bash\nPYTHONPATH="{os.environ.get("PYTHONPATH", "")}" exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        launcher = {
            "sandbox": "none", "python_path": str(python), "parent_host": "localhost", "internal_port": free_port(),
            "executables": {name: str(programs / name) for name in SLURM}, "poll_interval": 1,
        }  # fmt: skip
        return {"runtime": "slurm", "job_launcher": launcher}

    def _kubernetes(self) -> dict[str, Any]:
        parent = {
            "docker_image": "pt-peft", "python_path": sys.executable, "parent_port": free_port(),
            "workspace_mount_path": str(self._output(IN_PODS)),
        }  # fmt: skip
        return {"runtime": "k8s", "parent": parent, "job_launcher": {"default_python_path": sys.executable}}


def edit_internal_host(kit: Path, host: str) -> None:
    """The host at which a job's process finds the site's own; a cluster would know it by the name of a service."""
    file = kit / "local" / "comm_config.json"
    internal = yaml.safe_load(file.read_text())["internal"]
    edit(file, internal=internal | {"resources": internal["resources"] | {"host": host}})


@pytest.fixture(scope="module")
def lead(tmp_path_factory) -> Iterator[Lead]:
    folder = tmp_path_factory.mktemp("clusters")
    federation = Clusters(folder)
    try:
        federation.start()
        lead = Lead(federation, folder)
        federation.wait_for(lead.session)
        yield lead
        lead.session.close()
    finally:
        federation.close()


def test_a_job_runs_in_batch_jobs_in_a_pod_and_in_a_process(lead, quick, capsys):
    run = lead.submit(changed(quick, name="clusters", federation={"rounds": 2, "silence_s": 60}))
    record = run.finish()
    assert record["status"] == "finished"
    assert [one["sites"].keys() for one in record["rounds"]] == [set(SITES)] * 2
    assert record["final"]["sites"].keys() == set(SITES)
    kits = {name: lead.federation.kit(name) for name in ("server", *SITES)}
    for name in SITES:  # the pod's is brought to the kit
        assert main(["ledger", str(kits[name] / run.job), "--verify", str(run.results / "metrics.json")]) == 0
    assert len([*(kits["hospital-1"] / run.job).glob("slurm-*.out")]) == 1
    (pod,) = lead.federation.pods.iterdir()
    assert {path.suffix for path in (pod / "startup").iterdir()} <= {".crt", ".key", ".pem", ".json"}
    assert "is refused" not in (kits["server"] / "log.txt").read_text()


def test_a_pod_that_is_killed_takes_its_ledger_with_it_and_the_others_go_on(lead, experiment):
    run = lead.submit(changed(experiment, name="pod", federation={"rounds": 4, "silence_s": 60}))
    run.wait_for_round(1)
    for process in run.processes(IN_PODS):
        os.killpg(process.pid, signal.SIGKILL)
    record = run.finish()
    assert record["status"] == "finished"
    assert record["rounds"][-1]["sites"].keys() == {"hospital-1", "hospital-3"}
    ledgers = {name: (lead.federation.kit(name) / run.job / FILE_NAME).exists() for name in SITES}
    assert ledgers == {"hospital-1": True, "hospital-2": False, "hospital-3": True}
