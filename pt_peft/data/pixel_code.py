"""The identity of the code that computes pixels: a cached image is valid as long as it does not change."""

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path

from PIL import features

from pt_peft.environment import source_digest

MODULES = (
    "data/archive.py",
    "data/dicom.py",
    "data/dicom_display.py",
    "data/feature_shift.py",
    "data/frames.py",
    "data/lesion_fields.py",
    "data/lesion_patterns.py",
    "data/lesions.py",
    "data/npz.py",
    "data/pixels.py",
    "data/stored.py",
    "data/transforms.py",
    "data/untracked.py",
    "seeds.py",
)
"""The modules that pixels pass through, relative to the package. A test compares them with what `pixels` imports."""

PACKAGES = (
    "monai",
    "numpy",
    "pillow",
    "pydicom",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "python-gdcm",
    "torch",
    "torchvision",
)
"""Packages that decode or transform; those that are not installed count too, as pydicom uses any decoder it finds."""

LIBRARIES = ("jpg", "jpg_2000", "libjpeg_turbo", "libtiff", "webp", "zlib")
"""Decoders within Pillow, which a system may replace."""


@cache
def pixel_code() -> str:
    """SHA-256, in hex, over the modules, packages and libraries that pixels are computed with."""
    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    versions += [f"{name} {features.version(name)}" for name in LIBRARIES]
    return hashlib.sha256("\n".join([code_digest(Path(__file__).parents[1]), *versions]).encode()).hexdigest()


def code_digest(package: Path) -> str:
    """SHA-256, in hex, over the source of `MODULES` in the folder `package`."""
    return source_digest(package, MODULES)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
