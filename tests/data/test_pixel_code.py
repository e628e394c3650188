"""What a cached image depends on besides its file."""

import ast
import shutil
from importlib import metadata

import pytest
from PIL import features

from helpers import ROOT
from pt_peft.data import pixel_code

PACKAGE = ROOT / "pt_peft"
NO_PIXELS = {
    "data/__init__.py",
    "data/items.py",
    "data/label_values.py",
    "data/problems.py",
    "errors.py",
    "__init__.py",
}
"""Modules that `pixels` imports but through which no pixel passes. Values of ``experiment`` are in the cache's key."""


def imported(module: str) -> set[str]:
    """The modules of the package that `module` imports, in functions too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pt_peft":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "pt_peft"]
        else:
            continue
        for name in names:
            path = "/".join(name.split(".")[1:])
            found |= {one for one in (f"{path}.py", f"{path}/__init__.py") if (PACKAGE / one).is_file()}
    return found


def test_the_modules_are_those_that_pixels_imports():
    reached, new = set(), {"data/pixels.py"}
    while new:
        reached |= new
        wanted = {one for module in new for one in imported(module) if not one.startswith("experiment/")}
        new = wanted - reached - NO_PIXELS
    assert reached == set(pixel_code.MODULES)


@pytest.fixture
def package(tmp_path):
    return shutil.copytree(PACKAGE, tmp_path / "pt_peft", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))


@pytest.mark.parametrize("module", pixel_code.MODULES)
def test_a_module_that_makes_pixels_changes_the_code(package, module):
    before = pixel_code.code_digest(package)
    assert before == pixel_code.code_digest(PACKAGE)
    with open(package / module, "a") as file:
        file.write("\nVALUE = 1\n")
    assert pixel_code.code_digest(package) != before


@pytest.mark.parametrize("module", ["medmnist.py", "partition/even.py", "splits.py", "table.py", "augmentation.py"])
def test_another_module_does_not(package, module):
    before = pixel_code.code_digest(package)
    with open(package / "data" / module, "a") as file:
        file.write("\nVALUE = 1\n")
    assert pixel_code.code_digest(package) == before


@pytest.mark.parametrize("name", ["pillow", "torchvision", "python-gdcm"])
def test_the_version_of_a_package_changes_the_code(monkeypatch, name):
    before = pixel_code.pixel_code()
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda package: "0.0" if package == name else version(package))
    pixel_code.pixel_code.cache_clear()
    assert pixel_code.pixel_code() != before
    monkeypatch.undo()
    pixel_code.pixel_code.cache_clear()
    assert pixel_code.pixel_code() == before


def test_the_version_of_a_library_changes_the_code(monkeypatch):
    before = pixel_code.pixel_code()
    monkeypatch.setattr(features, "version", lambda library: "0.0")
    pixel_code.pixel_code.cache_clear()
    assert pixel_code.pixel_code() != before
    pixel_code.pixel_code.cache_clear()
