"""Packs what `python -m benchmark.speed.device` needs on a machine without a network, at most 60 MB.

    python -m benchmark.speed.device.pack --out pack.zip
    python -m benchmark.speed.device.pack --out FOLDER --python 3.12

It takes this clone's code, half of HAM10000 and ViT-Tiny's weights from ``$PT_PEFT_SHARED/data``, and the packages that
a machine with torch may lack, in the versions that are installed here. In the unpacked folder the command runs as in a
clone.
"""

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmark.measurements.provenance import provenance
from benchmark.speed.device.half import write_half
from benchmark.speed.device.packed import ABOUT, IMAGES, PACKAGES, ROOT, TABLE, WEIGHTS, About
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.files import tree_bytes
from pt_peft.presets import shared_data

MOST_BYTES = 60_000_000
CODE = ("pt_peft", "benchmark", "tests/conftest.py", "tests/helpers.py", "tests/model/test_contract.py", "LICENSE")
"""Files and folders of the clone."""
LEFT_OUT = shutil.ignore_patterns("__pycache__", "results", "suites")
WHEELS = (
    "timm",  # the models; its version must be ours
    "peft",  # LoRA and most other methods; its version must be ours
    "accelerate",  # HF PEFT imports it
    "psutil",  # HF PEFT imports it
    "monai",  # decodes images
    "pydicom",  # is imported where images are decoded
    "pydantic",  # the schemas
    "pydantic_core",  # pydantic's compiled part
    "annotated-types",  # pydantic imports it
    "typing-extensions",  # pydantic needs a recent one
    "typing-inspection",  # pydantic imports it
    "filelock",  # the cache of images
)
"""What a machine with torch, numpy, pillow, safetensors, huggingface_hub and transformers may lack."""
PYTHONS = ["3.12", "3.11", "3.13"]
"""The versions of Python for which compiled packages are packed, if no others are asked for."""
COMPILED = ("pydantic_core",)
"""Those of them that are compiled for one version of Python."""
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17, 12, 5)] + ["manylinux2014_x86_64"]


def download(requirements: Sequence[str], python: str, folder: Path) -> None:
    """Downloads a wheel for each of `requirements` by pip.

    Args:
        requirements: names, or ``name==version``; a name alone takes the version that is installed here.
        python: version of Python that they are for.
        folder: takes them.

    Raises:
        UserError: if there is none.
    """
    pinned = [one if "==" in one else f"{one}=={importlib.metadata.version(one)}" for one in requirements]
    command_line = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command_line += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command_line += [part for platform in PLATFORMS for part in ("--platform", platform)]
    done = subprocess.run([*command_line, "--dest", str(folder), *pinned], capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise UserError(f"--python: {python}; pip finds no wheels of {', '.join(pinned)} for it ({said}).")


def fill(folder: Path, pythons: Sequence[str], more: Sequence[str] = ()) -> None:
    """Writes the pack's content to `folder`, which is empty.

    Args:
        folder: takes it.
        pythons: versions of Python of the machine, such as ``3.12``.
        more: further requirements, as `download` takes them.

    Raises:
        UserError: if the data are not there, or a wheel is not to be had.
    """
    data, weights = shared_data("ham10000_200x150"), shared_data("vit_tiny_in21k_in1k")
    for name in CODE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / IMAGES).parent.mkdir()
    images = write_half(data / "images.zip", data / "metadata.csv", folder / IMAGES, folder / TABLE)
    shutil.copy(next(weights.glob("*.safetensors")), folder / WEIGHTS)
    with tempfile.TemporaryDirectory() as wheels:
        for number, python in enumerate(pythons):
            download([*WHEELS, *more] if number == 0 else COMPILED, python, Path(wheels))
        found = sorted(Path(wheels).glob("*.whl"))
        for wheel in found:
            # Unpacked here, so that the machine needs no pip. Compiled modules of several Pythons lie side by side.
            zipfile.ZipFile(wheel).extractall(folder / PACKAGES)
        names = [wheel.name for wheel in found]
    origin = provenance()
    about: About = {
        "commit": origin["commit"],
        "dirty": origin["dirty"],
        "python": list(pythons),
        "wheels": names,
        "images": images,
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def archive(folder: Path, to: Path) -> None:
    """Writes all files of `folder` to a zip archive, the same bytes for the same files."""
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as target:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            target.writestr(entry, path.read_bytes())


def check_size(path: Path, out: Path, most: int = MOST_BYTES) -> int:
    """Returns the bytes of a file, or of all files in a folder, which will be `out`.

    Raises:
        UserError: if they are more than `most`.
    """
    size = path.stat().st_size if path.is_file() else tree_bytes(path)
    if size > most:
        raise UserError(f"--out: {out} would have {size / 1e6:.1f} MB; at most {most / 1e6:.0f} MB would be right.")
    return size


@command
def main(arguments: list[str] | None = None) -> None:
    """Writes the pack."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.speed.device.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="FILE.zip, or a new folder")
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="default: %(default)s")
    parser.add_argument("--wheels", nargs="+", default=[], metavar="NAME[==VERSION]", help="packages to add")
    options = parser.parse_args(arguments)
    out: Path = options.out
    if out.exists():
        raise UserError(f"--out: {out} exists; the name of a new file or folder would be right.")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out: {out.resolve().parent} is not a folder.")
    with tempfile.TemporaryDirectory(prefix="pack-", dir=out.resolve().parent) as temporary:
        folder = Path(temporary) / "pack"
        folder.mkdir()
        fill(folder, options.python, options.wheels)
        made = folder
        if out.suffix == ".zip":
            made = Path(temporary) / "pack.zip"
            archive(folder, made)
        size = check_size(made, out)
        made.rename(out)
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
