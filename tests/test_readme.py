"""What the README says and shows."""

import os
import re
import shutil
import subprocess
import sys

from helpers import ROOT
from pt_peft.commands.methods import list_methods

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_methods_is_right():
    found = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|.*\|$", README, re.MULTILINE))
    rows = {row["method"]: row["parameters"] for row in list_methods("vit_base_patch16_224", None, 2)}
    assert len(found) == 10
    assert {name: int(count.replace(",", "")) for name, count in found.items()} == {name: rows[name] for name in found}
    assert all(f"`{name}`" in README for name in rows), "the README leaves a method out"


def test_a_new_method_from_the_readmes_instructions(tmp_path):
    """Its file, put into a copy of the repository, passes the contract and has a demo, and nothing else was touched."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "register(" in block]
    (name,) = re.findall(r'name="(\w+)"', code)
    for folder in ("pt_peft", "custom", "benchmark", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "pt_peft" / "methods" / f"{name}.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(tmp_path / "custom")))}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert re.search(r"\d+ passed", run("-m", "pytest", "-q", "tests/model/test_contract.py", "-k", name))
    run("-m", "pt_peft_flare", "job", name, "--out", "job")
    assert name in run("-m", "pt_peft", "methods", "--backbone", "vit_tiny_patch16_224")
