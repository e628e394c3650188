"""What a message tells a user to install has all that was missing."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest

from helpers import ROOT

ADVICE = re.compile(r"pip install ([a-z0-9 -]+?)(?= would be right|[,.;`\"'])")
FILES = {
    path: path.read_text(encoding="utf-8")
    for part in ("pt_peft", "custom", "benchmark")
    for path in sorted((ROOT / part).rglob("*.py"))
}
RECOMMENDED_FOR = {ROOT / "benchmark" / "commands" / "report.py": (ROOT / "benchmark" / "report").glob("*.py")}
"""Code that a file with advice runs, besides itself."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADVICES = [(path, packages) for path, text in FILES.items() for packages in ADVICE.findall(text)]
NOT_OURS = {"pylibjpeg-libjpeg"}  # whose licence is the GPL
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def distributions(requirements):
    return {_normal(re.split(r"[\[<>=!~ ;]", one)[0]) for one in requirements}


def _needs(distribution):
    """What an installed package depends on."""
    try:
        return distributions(importlib.metadata.requires(distribution) or [])
    except importlib.metadata.PackageNotFoundError:
        return set()


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(text):
    """Top-level modules that a file imports, also by name and late."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_package":
            yield from (str(one.value) for one in node.args if isinstance(one, ast.Constant))


def test_there_is_such_advice():
    assert {packages.split()[0] for _, packages in ADVICES} >= {"onnx", "matplotlib", "opacus", "python-gdcm", "shtab"}


@pytest.mark.parametrize(("path", "packages"), ADVICES, ids=lambda value: getattr(value, "name", value))
def test_advice_names_all_that_is_needed_and_nothing_else(path, packages):
    named = distributions(packages.split()) - NOT_OURS
    assert any(named <= distributions(extra) for extra in PROJECT["optional-dependencies"].values())
    bought = distributions(PROJECT["dependencies"]) | named
    bought |= {need for one in bought for need in _needs(one)}
    owners = importlib.metadata.packages_distributions()
    needed = {module for one in (path, *RECOMMENDED_FOR.get(path, ())) for module in imported(FILES[one])}
    for module in needed - set(sys.stdlib_module_names) - {"pt_peft", "pt_peft_flare", "benchmark"}:
        assert {*map(_normal, owners.get(module, [module]))} & bought, f"{module} comes with none of {packages}"


def test_nobody_is_told_to_take_the_package_from_an_index():
    """It is on none: somebody else could put one of that name there."""
    texts = {**FILES, **{page: page.read_text(encoding="utf-8") for page in PAGES}}
    assert not [path for path, text in texts.items() if re.search(r"pip install ['\"]?pt[-_]peft\b(?!-\d)", text)]
