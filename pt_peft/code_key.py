"""One key for all code that something kept was computed with: source, wherever it lies, and versions of libraries.

What a cache holds is valid as long as its key does not change. Nothing is listed by hand and nothing is run: imports
are read from the source, those in functions too.
"""

import ast
import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = {"PIL": "pillow"}
"""Distributions that are named otherwise than the module that they install."""
INSTALLED = {"site-packages", "dist-packages"}
"""Folders of libraries, which their versions stand for. All else is source, also where it has a version."""


@functools.cache
def code_key(*modules: str) -> str:
    """SHA-256, in hex, over the source of `modules` and of all that they import, and over the versions of libraries.

    A clone, an installed wheel and a job's bundle have the same key.

    Args:
        modules: names of modules, or of packages, whose modules are then all meant.
    """
    own = {name.partition(".")[0] for name in modules}
    sources: dict[str, bytes] = {}
    libraries: dict[str, str | None] = {}
    new = [one for name in modules for one in (name, *_modules_in(name))]
    while new:
        name = new.pop()
        top = name.partition(".")[0]
        if name in sources or top in libraries or top in sys.stdlib_module_names:
            continue
        file = file_of(name)
        if top not in own and ((first := file_of(top)) is None or INSTALLED & set(first.parts)):
            libraries[top] = library_version(top, DISTRIBUTIONS.get(top, top))
        elif file is not None and file.suffix == ".py":
            content = sources[name] = file.read_bytes().replace(b"\r\n", b"\n")
            new += _imported(name, content, file.name == "__init__.py")
    digest = hashlib.sha256(repr(sorted(libraries.items())).encode())
    for name, content in sorted(sources.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def library_version(module: str, distribution: str) -> str | None:
    """The version of a library; size and time of its module if no distribution has installed it; None without it.

    Args:
        module: what is imported.
        distribution: what installs it, as a rule.
    """
    try:
        return version(distribution)
    except PackageNotFoundError:
        file = file_of(module)
    return f"{file.stat().st_size} {file.stat().st_mtime_ns}" if file else None


def file_of(module: str) -> Path | None:
    """The file of a module or package, found without running any; None if there is none."""
    parent, _, _ = module.rpartition(".")
    loaded = sys.modules.get(module)
    if not parent and (places := getattr(loaded, "__path__", None)):
        inside = (Path(place) / "__init__.py" for place in places)
        return next((file for file in inside if file.is_file()), None)
    spec = _spec(module, _places(parent) if parent else None)
    found = spec.origin if spec and spec.has_location else getattr(loaded, "__file__", None)
    return Path(found) if found else None


def _places(package: str) -> list[str]:
    """The folders of a package, those included that it has added for itself."""
    parent, _, name = package.rpartition(".")
    added: list[str] = list(getattr(sys.modules.get(package), "__path__", ()))
    if not parent and added:
        return added
    around = _places(parent) if parent else None
    spec = _spec(package, around)
    # A folder without an ``__init__.py`` is a package too.
    folders = [folder for place in around or () if os.path.isdir(folder := os.path.join(place, name))]
    found: list[str] = list((spec and spec.submodule_search_locations) or (() if spec else folders))
    return list(dict.fromkeys([*found, *added]))


def _spec(module: str, places: list[str] | None) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(module, places)
    except KeyError:  # a folder without an ``__init__.py``, in a package that is not imported
        return None


def _modules_in(package: str) -> Iterator[str]:
    """Names of all modules in a package."""
    for place in _places(package):
        for file in sorted(Path(place).glob("*.py")):
            yield f"{package}.{file.stem}"
        for folder in sorted(Path(place).glob("*/__init__.py")):
            yield f"{package}.{folder.parent.name}"
            yield from _modules_in(f"{package}.{folder.parent.name}")


def _imported(name: str, content: bytes, is_package: bool) -> Iterator[str]:
    """Names that the source of a module imports, some of which may be no modules; the packages around them included."""
    found: set[str] = {name}
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    for one in found:
        parts = one.split(".")
        yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
