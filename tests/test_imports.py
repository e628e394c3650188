"""The directions of import: benchmark → pt_peft_flare → pt_peft, and light processes stay light."""

import ast
import subprocess
import sys

import pytest

from helpers import ROOT

FORBIDDEN = {
    "pt_peft": ("nvflare", "pt_peft_flare", "benchmark", "custom"),
    "custom/pt_peft_flare": ("benchmark", "custom"),
}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_against_the_direction(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in FORBIDDEN[package], f"{file}:{node.lineno} imports {name}"


@pytest.mark.parametrize("module", ["learner", "filters", "controller", "persistor"])
def test_flare_processes_need_no_torch(module):
    code = f"import sys, pt_peft_flare.{module}; print([m for m in ('torch', 'timm', 'monai', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
