"""The directions of import, as pyproject.toml's table has them, and light processes stay light."""

import subprocess
import sys

import pytest

from helpers import ROOT


def test_rooms_import_each_other_as_the_table_says():
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", ["learner", "filters", "controller", "persistor"])
def test_flare_processes_need_no_torch(module):
    code = (
        f"import sys, pt_peft_flare.{module}; "
        "print([m for m in ('torch', 'timm', 'monai', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
