"""Where what the command needs lies: in an unpacked pack beside the code. Imports the standard library alone."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import TypedDict

STARTED = time.monotonic()
"""When the command began, before its imports."""
ROOT = Path(__file__).parents[3]
"""The clone, or the unpacked pack."""
PACKAGES = "packages"
"""Folder of the pack with what its wheels hold."""
ABOUT = "packed.json"
"""The pack's description."""
IMAGES, TABLE, WEIGHTS = "data/images.zip", "data/metadata.csv", "data/vit_tiny.safetensors"
"""What of the data the pack holds: half of HAM10000, and ViT-Tiny's weights."""
NEEDED = ("torch", "timm", "peft", "safetensors", "pydantic", "numpy", "PIL", "monai", "filelock", "psutil")
"""Modules without which nothing can be measured."""


class About(TypedDict):
    """The content of `ABOUT`."""

    commit: str
    """The commit whose code was packed, in hex."""
    dirty: bool
    """Whether tracked files differed from it."""
    python: list[str]
    """The versions of Python, such as ``3.12``, for which the compiled packages are."""
    wheels: list[str]
    """Names of the wheels' files."""
    images: int
    """Number of images."""


def use_packages() -> None:
    """Lets Python find the pack's packages before the machine's own, if this is an unpacked pack."""
    folder = ROOT / PACKAGES
    if (ROOT / ABOUT).is_file() and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def about() -> About | None:
    """Reads the pack's description; None in a clone."""
    path = ROOT / ABOUT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def missing() -> list[str]:
    """The modules of `NEEDED` that are not here."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]
