"""The reference of the Python API: a page a package, a section a module, from docstrings by mkdocstrings."""

import pkgutil
from collections.abc import Callable
from functools import partial
from importlib import import_module

import pt_peft
from benchmark.report.docstrings import one_line
from prose import markdown, row

PACKAGES = (
    "pt_peft.experiment",
    "pt_peft.exchange",
    "pt_peft.statistics",
    "pt_peft.model",
    "pt_peft.data",
    "pt_peft.training",
    "pt_peft.federation",
    "pt_peft.privacy",
    "pt_peft.encryption",
    "pt_peft.export",
    "pt_peft.worker",
    "pt_peft_flare",
)


BEHIND_OTHERS = "---\nsearch:\n  boost: 0.2\n---\n"
"""Front matter: the search shows guides and settings before docstrings."""


def page(package: str) -> str:
    """The page of `package`: its own docstring, then each module."""
    lines = [BEHIND_OTHERS, f"# {package}\n", f"{markdown(import_module(package).__doc__ or '')}\n"]
    for module in _modules(package):
        lines += [f"::: {module}\n", "    options:\n      heading_level: 2\n"]
    return "\n".join(lines)


def _modules(package: str) -> list[str]:
    found = pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
    return [one.name for one in found if not one.name.rpartition(".")[2].startswith("_")]


SHOWN_HERE = ("pt_peft.prediction", "pt_peft.results")
"""Modules of the API that are in no package with a page."""


def api() -> str:
    """The page of the names of `pt_peft` itself."""
    lines = ["# pt_peft\n", f"{markdown(pt_peft.__doc__ or '')}\n", row("name", "what it is"), row("---", "---")]
    for name, module in pt_peft.API.items():
        said = one_line((getattr(pt_peft, name).__doc__ or "").split("\n\n")[0])
        lines.append(row(f"[`pt_peft.{name}`][{module}.{name}]", said))
    for module in SHOWN_HERE:
        lines += ["", f"::: {module}\n", "    options:\n      heading_level: 2"]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {"reference/python/api.md": api} | {
    f"reference/python/{package.removeprefix('pt_peft.')}.md": partial(page, package) for package in PACKAGES
}
