"""Federated parameter-efficient fine-tuning of Vision Transformers. Imports no FLARE.

The names of the Python API are imported when they are first used: ``import pt_peft`` takes no torch. Type checkers find
them in ``__init__.pyi``: here, who reads imports from the source would take them for imports of every module.
"""

import importlib

__version__ = "0.2.0"

API = {
    "Experiment": "pt_peft.experiment.experiment",
    "Predictions": "pt_peft.prediction",
    "Predictor": "pt_peft.prediction",
    "Results": "pt_peft.results",
    "Site": "pt_peft.experiment.site",
    "adapt": "pt_peft.model.own_loop",
    "load": "pt_peft.prediction",
    "load_trained_state": "pt_peft.model.own_loop",
    "trained_state": "pt_peft.model.own_loop",
}
"""The module of each name of the API."""


def __getattr__(name: str) -> object:
    if name not in API:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(API[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *API})
