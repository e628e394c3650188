"""PEFT methods: the record of one, and the registry."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import peft
from torch import nn

from pt_peft import methods, schema
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Method
from pt_peft.schema import Strict


@dataclass(frozen=True, kw_only=True)
class PeftMethod:
    """What is true of a method. One file in `pt_peft/methods/` registers one."""

    name: str
    """Name in `experiment.json`; no ``+``."""
    summary: str
    """One line: what it trains."""
    paper: str
    """Where it comes from."""
    config: type[Strict]
    """Its fields, with units and ranges."""
    inject: Callable[[nn.Module, Strict], None]
    """Adds the method's tensors to a frozen timm ViT and marks those that train (``requires_grad``). Raises UserError with
    the reason if the method cannot apply to the backbone. Random draws come from torch's global generator."""
    identity_at_start: bool
    """Whether the logits are unchanged by the injection."""
    merge: Callable[[nn.Module], None] | None
    """Folds the trained adapter into the backbone's own tensors, in place; None if that is not possible."""
    learning_rate: float
    """Peak AdamW step size that is a good start; the demo uses it."""
    trains_backbone: bool = False
    """Whether tensors of the backbone itself train, so that the server has to hold them."""
    starts_from_backbone: bool = False
    """Whether the adapter's start is computed from the backbone's tensors, so that the server has to read them."""
    round_keys: Callable[[list[str], Strict, int, int], set[str]] | None = None
    """For a round-dependent method: of its keys (all that ever train, sorted), given its config, the experiment's seed and
    the round (from 0), those that train in that round. Pure, and the same on every machine."""
    peft_config: Callable[[nn.Module, Strict], peft.PeftConfig] | None = None
    """For a tuner of HF peft: its config on a plain timm model, for the export."""
    job: bool = False
    """Whether the repository ships its job folder ``jobs/<name>``."""


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """A name for several methods together; what holds of all of them holds of it."""

    name: str
    summary: str
    paper: str
    parts: tuple[str, ...]
    """Names of the methods, in the order of their injection."""
    learning_rate: float
    """As in `PeftMethod`."""
    job: bool = False
    """As in `PeftMethod`."""


_REGISTRY: dict[str, PeftMethod | Hybrid] = {}


def register(method: PeftMethod | Hybrid) -> None:
    """Adds `method` to the registry. Raises ValueError if its name is taken or contains ``+``."""
    if method.name in _REGISTRY:
        raise ValueError(f"a method named '{method.name}' is registered already")
    if "+" in method.name:
        raise ValueError(f"method name '{method.name}' contains '+', which joins methods")
    _REGISTRY[method.name] = method


@cache
def _load_all() -> None:
    """Raises UserError for a file that is no method."""
    for module in pkgutil.iter_modules(methods.__path__):
        path, before = f"{methods.__name__}.{module.name}", len(_REGISTRY)
        if path in sys.modules:
            continue
        try:
            importlib.import_module(path)
        except Exception as error:  # whatever an author's mistake leads to
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


def get_method(name: str) -> PeftMethod | Hybrid:
    """The record of `name`. Raises UserError, listing the known names, if there is none."""
    _load_all()
    if name not in _REGISTRY:
        raise UserError(
            f"experiment: field 'method.name' is '{name}', which is unknown; known methods are {', '.join(sorted(_REGISTRY))} "
            "and any of them joined by '+'."
        )
    return _REGISTRY[name]


def components(method: Method) -> list[tuple[PeftMethod, Strict]]:
    """The elementary methods that ``method.name`` stands for, each with its validated config.

    Raises:
        UserError: for an unknown or repeated name, options of a method that takes no part, or an invalid option.
    """
    found: list[PeftMethod] = []
    for name in method.name.split("+"):
        record = get_method(name)
        found.extend(map(get_method, record.parts) if isinstance(record, Hybrid) else [record])
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
    return [
        (
            record,
            schema.parse(
                record.config, method.options.get(record.name, {}), f"experiment: method.options.{record.name}"
            ),
        )
        for record in found
    ]


def nothing_to_merge(model: nn.Module) -> None:
    """`PeftMethod.merge` of a method whose tensors are the backbone's own."""
