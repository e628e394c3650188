"""The directions of import, as pyproject.toml's table has them, and light processes stay light."""

import json
import subprocess
import sys

import pytest

from helpers import ROOT

NOT_NEEDED = (
    "monai",
    "matplotlib",
    "sklearn",
    "pandas",
    "onnx",
    "pydicom",
    "opacus",
    "tensorboard",
    "nvflare",
    "tenseal",
)
"""Packages that training uses nothing of, or that only some sites need."""
MOST_MODULES = 6500
"""Of the worker host; torch, timm and HF PEFT are most of the 5,500."""


def test_rooms_import_each_other_as_the_table_says():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", ["learner", "filters", "controller", "persistor", "tensorboard_receiver"])
def test_flare_processes_need_no_torch(module):
    code = (
        f"import sys, pt_peft_flare.{module}; "
        "print([m for m in ('torch', 'timm', 'monai', 'peft', 'matplotlib', 'PIL.Image') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_worker_host_imports_what_training_needs(tmp_path):
    """By number, as a time would be that of the machine."""
    from pt_peft.experiment.experiment import Experiment
    from pt_peft.experiment.site import Site

    experiment = Experiment.read(ROOT / "jobs" / "lora_vpt" / "app" / "config" / "experiment.json")
    assert experiment.data.augment
    work = {"experiment": experiment.model_dump(mode="json"), "site": Site().model_dump(mode="json")}
    (tmp_path / "work.json").write_text(json.dumps(work))
    code = (
        "import json, sys; from pt_peft.worker import host, prepared; host._make_ready(json.load(open(sys.argv[1])))\n"
        "print(json.dumps([prepared._prepared is not None, sorted({name.split('.')[0] for name in sys.modules}),"
        " len(sys.modules)]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "work.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    is_prepared, packages, modules = json.loads(done.stdout)
    assert is_prepared
    assert {"torch", "timm", "peft"} < set(packages)
    assert not set(NOT_NEEDED) & set(packages)
    assert modules < MOST_MODULES
