"""Recipes in a provisioned federation and in a POC, through FLARE's own environments and command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lead import Run, wait
from nvflare.recipe import PocEnv, ProdEnv, add_cross_site_evaluation

from benchmark.federation.provisioned import LEAD
from helpers import JOBS, changed
from pt_peft.export.adapter import find_adapter
from pt_peft_flare.commands.ledger import look, verify
from pt_peft_flare.ledger import FILE_NAME
from pt_peft_flare.recipe import PeftRecipe

pytestmark = pytest.mark.slow
NVFLARE = str(Path(sys.executable).parent / "nvflare")


@pytest.fixture
def env(lead):
    return ProdEnv(startup_kit_location=str(lead.federation.kit(LEAD)), username=LEAD)


def finished(result):
    adapter = find_adapter(Path(result))
    assert (adapter.parent / "tb_events" / "global").is_dir()
    record = json.loads((adapter.parent / "metrics.json").read_text())
    assert record["status"] == "finished"
    return adapter.parent


def test_a_recipe_runs_in_a_provisioned_federation(lead, quick, env):
    recipe = PeftRecipe.from_experiment(changed(quick, name="recipe"))
    add_cross_site_evaluation(recipe)
    run = recipe.execute(env)
    assert run.get_status() in ("SUBMITTED", "DISPATCHED", "RUNNING")
    folder = finished(run.get_result())
    assert run.get_status() == "FINISHED:COMPLETED"
    (matrix,) = folder.parent.rglob("cross_val_results.json")
    models = json.loads(matrix.read_text())
    assert models.keys() == {*lead.federation.sites}
    assert models["hospital-1"].keys() == {"SRV_adapter.safetensors", "SRV_best_adapter.safetensors"}, (
        "the sites' own models stay there"
    )
    holes = json.loads((folder / "metrics.json").read_text())["cross_site"]["left_out"]
    assert holes.keys() == {*lead.federation.sites}
    assert {one["field"] for one in holes.values()} == {"own_model_stays"}


def test_images_are_counted_in_a_provisioned_federation(lead, quick, env):
    run = PeftRecipe.from_experiment(changed(quick, name="quick"), statistics=True).execute(env)
    (path,) = Path(run.get_result() or "").rglob("image_statistics.json")
    found = json.loads(path.read_text())
    assert (found["left_out"], found["refused"]) == ({}, {})
    assert found["sites"].keys() == {*lead.federation.sites}
    assert (path.parent / "image_statistics.html").is_file()
    for site in lead.federation.sites:
        sent = look(lead.federation.kit(site) / run.get_job_id() / FILE_NAME, site)
        verify(sent, path)
        assert (sent["counted"], sent["faults"]) == (1, [])


def test_a_run_is_aborted(quick, env):
    run = PeftRecipe.from_experiment(changed(quick, name="aborted", federation={"rounds": 500})).execute(env)
    wait(lambda: run.get_status() == "RUNNING", 120, "the job's start")
    run.abort()
    wait(lambda: run.get_status() == "FINISHED:ABORTED", 120, "the job's end")


def submitted(lead, job: Path, home: Path) -> Run:
    """A job that FLARE's own command has submitted."""
    done = subprocess.run(
        [NVFLARE, "job", "submit", "-j", str(job), "--startup-kit", str(lead.federation.kit(LEAD))],
        env=os.environ | {"HOME": str(home)}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return Run(done.stdout.partition("job_id: ")[2].split()[0], lead)


def test_flares_own_command_takes_what_is_exported(lead, quick, env, tmp_path):
    recipe = PeftRecipe.from_experiment(changed(quick, name="exported", federation={"rounds": 1}))
    recipe.export(str(tmp_path), env=env)
    assert submitted(lead, tmp_path / "exported", tmp_path).finish()["status"] == "finished"


def test_flares_own_command_has_a_folder_for_the_simulator_refused(lead, tmp_path):
    """Its README counts as code, which kits do not take; ``--installed`` leaves it out."""
    shutil.copytree(JOBS / "lora_vpt", tmp_path / "lora_vpt")  # FLARE leaves a signature in it
    run = submitted(lead, tmp_path / "lora_vpt", tmp_path)
    run.finish()
    assert run.state == "FINISHED:FAILED_TO_RUN"


@pytest.mark.filterwarnings("ignore")  # of FLARE's POC, its aiohttp, its processes that nobody waits for
def test_a_recipe_runs_in_a_poc(quick, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NVFLARE_POC_WORKSPACE", str(tmp_path / "poc"))
    experiment = changed(quick, name="in_a_poc", data={"images_per_site": {"train": 64, "val": 16, "test": 16}})
    env = PocEnv(num_clients=2)
    try:
        run = PeftRecipe.from_experiment(experiment).execute(env)
        finished(run.get_result(clean_up=False))
    finally:
        env.stop()
