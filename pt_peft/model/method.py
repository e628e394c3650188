"""PEFT methods: the record that describes one, and the registry."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import peft
from torch import nn

from pt_peft import schema
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Method
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict

Config = TypeVar("Config", bound=Strict)


@dataclass(frozen=True, kw_only=True)
class PeftMethod(Generic[Config]):
    """What is true of a method. Each file in `pt_peft/methods/` registers one."""

    name: str
    """Name in `experiment.json`; no ``+``."""
    summary: str
    """What it trains, in one line."""
    paper: str
    """The publication it comes from."""
    config: type[Config]
    """Its options, with units and ranges."""
    inject: Callable[[ViT, Config], None]
    """Adds the method's tensors to a frozen timm ViT and marks those that train (``requires_grad``). It changes no
    frozen tensor outside the layers that it trains or wraps. Random draws come from torch's global generator. Raises
    UserError with the reason if the method cannot apply to the backbone."""
    identity_at_start: bool
    """Whether the injection leaves the logits unchanged."""
    merge: Callable[[ViT], None] | None
    """Folds the trained adapter into the backbone's own tensors, in place; None if that is not possible."""
    learning_rate: float
    """Peak AdamW step size that is a good start; the demo uses it."""
    trains_backbone: bool = False
    """Whether tensors of the backbone itself train, so that the server has to hold them."""
    starts_from_backbone: bool = False
    """Whether the adapter's start is computed from the backbone's tensors, so that the server has to read them."""
    round_keys: Callable[[list[str], Config, int, int], set[str]] | None = None
    """Chooses what trains in a round; None if all tensors of the method train in every round. Takes the keys of the
    tensors that ever train (sorted), the method's config, the experiment's seed and the round (from 0); returns the
    keys that train in that round. Pure, and the same on every machine."""
    peft_config: Callable[[ViT, Config], peft.PeftConfig] | None = None
    """Makes HF PEFT's config for a plain timm model, for the export; None if the method is no tuner of HF PEFT."""
    job: bool = False
    """Whether the repository ships its job folder ``jobs/<name>``."""


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """A name for several methods together."""

    name: str
    """Name in `experiment.json`; no ``+``."""
    summary: str
    """What it trains, in one line."""
    paper: str
    """The publication it comes from."""
    parts: tuple[str, ...]
    """Names of the methods, in the order of their injection."""
    learning_rate: float
    """As in `PeftMethod`."""
    job: bool = False
    """As in `PeftMethod`."""


_REGISTRY: dict[str, PeftMethod[Any] | Hybrid] = {}


def register(method: PeftMethod[Any] | Hybrid) -> None:
    """Adds `method` to the registry.

    Raises:
        ValueError: if its name is taken or contains ``+``.
    """
    if method.name in _REGISTRY:
        raise ValueError(f"a method named '{method.name}' is registered already")
    if "+" in method.name:
        raise ValueError(f"method name '{method.name}' contains '+', which joins methods")
    _REGISTRY[method.name] = method


@cache
def _load_all() -> None:
    """Imports every method file. Raises UserError for a file that is no method."""
    methods = importlib.import_module("pt_peft.methods")  # not above: methods import this module
    for module in pkgutil.iter_modules(methods.__path__):
        path, before = f"{methods.__name__}.{module.name}", len(_REGISTRY)
        if path in sys.modules:
            continue
        try:
            importlib.import_module(path)
        except Exception as error:  # an author's mistake can be any of them
            raise UserError(f"pt_peft/methods/{module.name}.py: {type(error).__name__}: {error}.") from error
        if len(_REGISTRY) == before:
            raise UserError(
                f"pt_peft/methods/{module.name}.py: registers no method; a call of register() would be right."
            )
    for method in _REGISTRY.values():
        if isinstance(method, Hybrid):
            for part in method.parts:
                if not isinstance(_REGISTRY.get(part), PeftMethod):
                    raise UserError(f"method '{method.name}': its part '{part}' is no elementary method.")


def method_names() -> list[str]:
    """Names of all registered methods, sorted."""
    _load_all()
    return sorted(_REGISTRY)


def get_method(name: str) -> PeftMethod[Any] | Hybrid:
    """The record of the method `name`.

    Raises:
        UserError: if there is none; the message lists the known names.
    """
    _load_all()
    if name not in _REGISTRY:
        raise UserError(
            f"experiment: field 'method.name' is '{name}', which is unknown; known methods are "
            f"{', '.join(sorted(_REGISTRY))} and any of them joined by '+'."
        )
    return _REGISTRY[name]


def components(method: Method) -> list[tuple[PeftMethod[Any], Strict]]:
    """The elementary methods that ``method.name`` stands for, each with its validated config.

    Raises:
        UserError: for an unknown or repeated name, options of a method that takes no part, or an invalid option.
    """
    found = [record for name in method.name.split("+") for record in _elementary(name)]
    names = [record.name for record in found]
    if len(set(names)) < len(names):
        raise UserError(
            f"experiment: field 'method.name' is '{method.name}', which names a method twice ({', '.join(names)})."
        )
    for name in method.options:
        if name not in names:
            raise UserError(
                f"experiment: field 'method.options.{name}' belongs to no part of '{method.name}'; its parts are "
                f"{', '.join(names)}."
            )
    return [(record, _config(record, method)) for record in found]


def _elementary(name: str) -> list[PeftMethod[Any]]:
    """The method `name` itself, or the parts of a hybrid."""
    record = get_method(name)
    if isinstance(record, PeftMethod):
        return [record]
    return [part for one in record.parts for part in _elementary(one)]


def _config(record: PeftMethod[Any], method: Method) -> Strict:
    options = method.options.get(record.name, {})
    return schema.parse(record.config, options, f"experiment: method.options.{record.name}")


def nothing_to_merge(model: nn.Module) -> None:
    """`PeftMethod.merge` of a method whose tensors are the backbone's own."""
