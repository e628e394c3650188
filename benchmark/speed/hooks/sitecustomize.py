"""Marks the moments of our own runs. Python imports this module at its start if its folder is on PYTHONPATH.

So the code that is measured is the code that is installed, without anything that is only for measuring.
"""

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from benchmark.speed.marks import mark

TRAINER = "pt_peft.training.trainer"


class _MarkingFinder(importlib.abc.MetaPathFinder):
    """Finds `TRAINER` as Python does; when it has been imported, its trainings are marked."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TRAINER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            mark("imported")
            _wrap(module.LocalTrainer)

        spec.loader.exec_module = execute_and_wrap
        return spec


def _wrap(trainer: Any) -> None:
    """Marks each call of ``trainer.train``, whose first argument is the site's name."""
    train: Callable[..., object] = trainer.train

    @functools.wraps(train)
    def marked(self: object, site: str, *args: object, **kwargs: object) -> object:
        mark("begins", site)
        try:
            return train(self, site, *args, **kwargs)
        finally:
            mark("ends", site)

    trainer.train = marked


sys.meta_path.insert(0, _MarkingFinder())
