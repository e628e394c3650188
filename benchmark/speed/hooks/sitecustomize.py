"""Notes the moments of our own runs: Python imports this module at its start where this folder is on PYTHONPATH.

So the code that is measured is the code that is installed, with nothing in it for the sake of measuring.
"""

import functools
import importlib.abc
import importlib.util
import sys

from benchmark.speed.marks import mark

TRAINING = "pt_peft.training.trainer"


class _Wraps(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != TRAINING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def and_wrap(module):
            execute(module)
            mark("imported")
            _wrap(module.LocalTrainer)

        spec.loader.exec_module = and_wrap
        return spec


def _wrap(trainer):
    train = trainer.train

    @functools.wraps(train)
    def noted(self, site, *args, **kwargs):
        mark("begins", site)
        try:
            return train(self, site, *args, **kwargs)
        finally:
            mark("ends", site)

    trainer.train = noted


sys.meta_path.insert(0, _Wraps())
