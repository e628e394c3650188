"""Marks the moments of our own runs. Python imports this module at its start if its folder is on PYTHONPATH.

So the code that is measured is the code that is installed, without anything that is only for measuring.
"""

import functools
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from benchmark.speed.marks import mark

TRAINER = "pt_peft.training.trainer"
SERVER = "pt_peft_flare.federated_run"


class _MarkingFinder(importlib.abc.MetaPathFinder):
    """Finds a module as Python does; when it has been imported, `mark_calls` changes it."""

    def __init__(self, name: str, mark_calls: Callable[[Any], None]):
        self._name = name
        self._mark_calls = mark_calls

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_mark(module: ModuleType) -> None:
            execute(module)
            self._mark_calls(module)

        spec.loader.exec_module = execute_and_mark
        return spec


def _trainings(module: Any) -> None:
    """Marks that the module is there, and each training, whose first argument is the site's name."""
    mark("imported")
    train: Callable[..., object] = module.LocalTrainer.train

    @functools.wraps(train)
    def marked(self: object, site: str, *args: object, **kwargs: object) -> object:
        mark("begins", site)
        try:
            return train(self, site, *args, **kwargs)
        finally:
            mark("ends", site)

    module.LocalTrainer.train = marked


def _serving(module: Any) -> None:
    """Marks when the server of a federation begins its rounds and when it is done."""
    from benchmark.measurements.peak_memory import pss  # imports psutil, as FLARE's server does

    complete: Callable[[object], object] = module.FederatedRun.complete

    @functools.wraps(complete)
    def marked(self: object) -> object:
        mark("serves", pss=pss(os.getpid()))
        try:
            return complete(self)
        finally:
            mark("served", pss=pss(os.getpid()))

    module.FederatedRun.complete = marked


sys.meta_path[:0] = [_MarkingFinder(TRAINER, _trainings), _MarkingFinder(SERVER, _serving)]
