"""Every command of the pages runs, or says why not."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Block, blocks, environment, needs_clone, pages

from helpers import ROOT

COMMANDS = {page: blocks(page) for page in pages()}
IDS = [str(page.relative_to(ROOT)) for page in COMMANDS]
LANGUAGES = ("bash", "python", "json", "text", "csv", "yaml", "html", "toml", "dockerfile")
GIVEN = ("jobs", "deploy")
CLONE = ("benchmark", "custom", "deploy", "jobs", "pt_peft", "tests", "pyproject.toml")


@pytest.mark.parametrize("page", COMMANDS, ids=IDS)
def test_blocks_have_a_language_and_reasons(page):
    for block in COMMANDS[page]:
        assert block.language in LANGUAGES, f"{block.where}: '{block.language}' is none of {', '.join(LANGUAGES)}"
        assert block.not_run != "", f"{block.where}: 'not run' has no reason"


def _with_commands(slow: bool) -> list:
    chosen = [page for page, found in COMMANDS.items() if any(one.runs and one.slow == slow for one in found)]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in chosen]


@pytest.mark.parametrize("page", _with_commands(slow=False))
def test_the_commands_of_a_page_run(page, tmp_path, request):
    _run_page(page, tmp_path, request, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", _with_commands(slow=True))
def test_the_slow_commands_of_a_page_run(page, tmp_path, request):
    _run_page(page, tmp_path, request, slow=True)


def _run_page(page: Path, folder: Path, request: pytest.FixtureRequest, *, slow: bool) -> None:
    clone = needs_clone(page)
    for name in CLONE if clone else GIVEN:
        _copy(ROOT / name, folder / name)
    programs = request.getfixturevalue("tmp_path_factory").mktemp("bin")
    variables = environment(folder if clone else ROOT, programs)
    for block in COMMANDS[page]:
        if block.not_run is not None or (block.slow and not slow):
            continue
        if block.title is not None:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.runs and _has(block.needs, request.getfixturevalue):
            _run(block, folder, variables)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _has(needed: str | None, fixture: Callable[[str], object]) -> bool:
    if needed == "shared":
        fixture("shared")  # skips where there is none
    return needed in (None, "shared") or importlib.util.find_spec(needed) is not None


def _run(block: Block, folder: Path, variables: dict[str, str]) -> None:
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*program, block.code], cwd=folder, env=variables, capture_output=True, text=True, timeout=1800
    )
    output = f"{block.where}\n{block.code}\n{done.stdout}{done.stderr}"
    if block.fails is None:
        assert done.returncode == 0, output
    else:
        assert done.returncode != 0, output
        assert block.fails in done.stdout + done.stderr, output
