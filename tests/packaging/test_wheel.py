"""The wheel, installed where the clone is not on the path: what it holds, the jobs it writes, and a simulation."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib.metadata import entry_points
from pathlib import Path
from zipfile import ZipFile

import pytest

from helpers import JOBS, ROOT
from pt_peft import __version__
from pt_peft.experiment.experiment import Experiment
from pt_peft.model.adapter_file import load_adapter

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "pt_peft", "custom")
"""All that the wheel is built from."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has the wheel."""

    folder: Path

    def run(self, *command: str, cwd: Path) -> str:
        """Runs a program of the environment. Returns what it prints."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PT_PEFT"))}
        binaries = self.folder / "bin"
        done = subprocess.run(
            [str(binaries / command[0]), *command[1:]],
            cwd=cwd,
            env={**inherited, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "PYTHONNOUSERSITE": "1"},
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from copies, so that no build folder is left in the clone."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source" / name)
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Environment:
    """A fresh environment that has the wheel, and the running one's dependencies by a path file."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    # Python does not read the path files of folders that a path file names: an editable install stays behind.
    heavy = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (Path(paths["purelib"]) / "dependencies.pth").write_text("\n".join(heavy) + "\n")
    (nvflare,) = entry_points(group="console_scripts", name="nvflare")
    script = folder / "bin" / "nvflare"
    script.write_text(
        f"#!{python}\nimport sys\nfrom {nvflare.module} import {nvflare.attr}\nsys.exit({nvflare.attr}())\n"
    )
    script.chmod(0o755)
    return Environment(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    with ZipFile(wheel) as file:
        held = {name for name in file.namelist() if not name.split("/")[0].endswith(".dist-info")}
    library, flare = ROOT / "pt_peft", ROOT / "custom" / "pt_peft_flare"
    expected = {
        str(path.relative_to(package.parent))
        for package in (library, flare)
        for path in (*package.rglob("*.py"), package / "py.typed")
    }
    expected |= {f"pt_peft/embedded/backbone.{suffix}" for suffix in ("json", "safetensors")}
    expected |= {"pt_peft/embedded/measurements.json", "pt_peft/__init__.pyi"}
    assert held == expected


def test_the_metadata(wheel):
    with ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(file.read(name).decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "nvflare==2.9.0" in metadata.get_all("Requires-Dist", [])
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_the_clone_is_not_importable(environment, tmp_path):
    code = (
        "import importlib.util, pt_peft, pt_peft_flare, torch;"
        "print(pt_peft.__file__, pt_peft_flare.__file__, importlib.util.find_spec('benchmark'), sep='\\n')"
    )
    *packages, benchmark = environment.run("python", "-c", code, cwd=tmp_path).splitlines()
    assert all(Path(file).is_relative_to(environment.folder) for file in packages)
    assert benchmark == "None"


def test_it_writes_the_committed_job(environment, tmp_path):
    environment.run("pt-peft", "job", "lora_vpt", "--out", "lora_vpt", cwd=tmp_path)
    assert files(tmp_path / "lora_vpt") == files(JOBS / "lora_vpt")


def test_it_has_the_presets(environment, tmp_path):
    """MedMNIST's classes, and the partition of a preset's images."""
    environment.run("pt-peft", "job", "medmnist:pneumoniamnist", "--out", "pneumonia", cwd=tmp_path)
    experiment = Experiment.read(tmp_path / "pneumonia" / "app" / "config" / "experiment.json")
    assert experiment.data.classes == ("normal", "pneumonia")
    counts = json.loads(environment.run("pt-peft", "partition", "lora", "--sites", "2", "--json", cwd=tmp_path))
    assert [counts[site]["train"]["images"] for site in ("site-1", "site-2")] == [384, 384]


@pytest.mark.slow
def test_it_simulates_the_job_that_it_writes(environment, tmp_path):
    environment.run("pt-peft", "job", "lora_vpt", "--out", "lora_vpt", cwd=tmp_path)
    environment.run("nvflare", "simulator", "lora_vpt", cwd=tmp_path)
    result = tmp_path / "simulator_workspace" / "server" / "simulate_job"
    tensors, header = load_adapter(result / "adapter.safetensors")
    assert tensors
    assert header["version"] == __version__
