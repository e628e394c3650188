"""Every committed job by its literal command. Minutes each."""

import shutil

import pytest

from helpers import JOBS, simulate
from pt_peft.model.adapter_file import load_adapter
from pt_peft.presets import committed_jobs


@pytest.mark.slow
@pytest.mark.parametrize(("name", "experiment"), committed_jobs().items())
def test_the_literal_command(name, experiment, shared_host, tmp_path):
    shutil.copytree(JOBS / name, tmp_path / name)
    run = simulate(tmp_path / name, None, cwd=tmp_path, host=shared_host, timeout=590)
    assert run.exit_code == 0, run.output
    assert run.metrics["status"] == "finished"
    assert len(run.metrics["rounds"]) == experiment.federation.rounds
    assert load_adapter(run.server / "adapter.safetensors")[1]["model"]["method"]["name"] == experiment.method.name
    # Four classes: chance is 0.25.
    assert run.metrics["final"]["test"]["pooled"]["balanced_accuracy"] > 0.6
