"""The notebooks run from top to bottom, and hold no outputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import environment

from helpers import ROOT
from notebooks import FOLDER, PAGES, cells, page

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SLOW = {"hospital", "lead"}
"""They simulate a federation."""
SHELL = re.compile(r"^!(.*)$", re.MULTILINE)
RUN = """
import re, subprocess
def shell(line, names):
    filled = re.sub(r"\\$(\\w+)", lambda found: str(names[found[1]]), line)
    subprocess.run(["bash", "-euo", "pipefail", "-c", filled], check=True)
"""
"""Jupyter's ``!`` for a script; a command that fails ends it."""


def script(path: Path) -> str:
    """The code cells in order, in one namespace."""
    code = [text for kind, text in cells(path) if kind == "code"]
    return RUN + "\n".join(SHELL.sub(lambda found: f"shell({found[1]!r}, globals())", text) for text in code)


def test_there_is_one_for_each_user():
    assert [path.stem for path in NOTEBOOKS] == ["hospital", "lead", "researcher"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_written_without_outputs(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_pages_show_text_and_code():
    assert set(PAGES) == {f"notebooks/{path.stem}.md" for path in NOTEBOOKS}
    shown = page(FOLDER / "lead.ipynb")
    assert shown.startswith(
        "# The lead of a federation\n\n*A Jupyter notebook: [lead.ipynb](lead.ipynb).*\n\nYou write"
    )
    assert "```python\n!pt-peft export $workspace --format timm --out lesions_timm\n```" in shown


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in SLOW), id=path.stem) for path in NOTEBOOKS],
)
def test_it_runs(path, tmp_path, tmp_path_factory):
    variables = environment(ROOT, tmp_path_factory.mktemp("bin"))
    done = subprocess.run(
        [sys.executable, "-c", script(path)], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{path.name}\n{done.stdout}{done.stderr}"
