"""PEFT methods: the record of one, the registry, and the model that a method makes of a backbone."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from pt_peft import methods, schema
from pt_peft.backbone import create_backbone, freeze
from pt_peft.errors import UserError
from pt_peft.experiment import Experiment, Method
from pt_peft.schema import Strict
from pt_peft.seeds import derive_seed
from pt_peft.tensors import Tensors


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
    """Adds the method's tensors to a frozen timm ViT and marks those that train (``requires_grad``)."""
    identity_at_start: bool
    """Whether the logits are unchanged by the injection."""
    mergeable: bool
    """Whether the trained adapter can be folded into the backbone's own tensors."""
    trains_backbone: bool
    """Whether tensors of the backbone itself train, so that the server has to hold them."""


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """A name for several methods together; what holds of all of them holds of it."""

    name: str
    summary: str
    paper: str
    parts: tuple[str, ...]
    """Names of the methods, in the order of their injection."""


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
    for module in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"{methods.__name__}.{module.name}")


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
        raise UserError(f"experiment: field 'method.name' is '{method.name}', which names a method twice ({', '.join(names)}).")
    for name in method.options:
        if name not in names:
            raise UserError(
                f"experiment: field 'method.options.{name}' belongs to no part of '{method.name}'; its parts are "
                f"{', '.join(names)}."
            )
    return [
        (record, schema.parse(record.config, method.options.get(record.name, {}), f"experiment: method.options.{record.name}"))
        for record in found
    ]


def build_model(experiment: Experiment, weights: Path | None) -> nn.Module:
    """The backbone with the method's adapters and a fresh head, initialised from the experiment's seed.

    Exactly the exchanged tensors have ``requires_grad``.

    Args:
        weights: the backbone's file; None leaves the backbone random, which is enough to know the exchanged tensors of
            a method that trains none of the backbone's.

    Raises:
        UserError: if the method or the backbone is unknown, or the method cannot apply to the backbone.
    """
    parts = components(experiment.method)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(experiment.seed, "backbone"))
        model = create_backbone(experiment.backbone, len(experiment.data.classes), weights)
        # Reset after the backbone so that the draw does not depend on whether weights were loaded.
        torch.manual_seed(derive_seed(experiment.seed, "initial state"))
        head = model.get_classifier()
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        trained: list[nn.Parameter] = list(head.parameters())
        for method, config in parts:
            freeze(model)
            method.inject(model, config)
            trained.extend(parameter for parameter in model.parameters() if parameter.requires_grad)
    freeze(model)
    for parameter in trained:
        parameter.requires_grad_(True)
    return model


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of `model` under the keys they have in every file, payload and chart.

    A backbone tensor has timm's own key whatever wraps it while it trains (``blocks.3.attn.qkv.weight``), an adapter its
    block's path and its own name (``blocks.3.attn.qkv.lora_A``).
    """
    renamed: dict[str, str] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            renamed.update((f"{path}.base_layer.{name}", f"{path}.{name}") for name, _ in layer.get_base_layer().named_parameters())
            for adapter in layer.adapter_layer_names:
                held = getattr(layer, adapter, None)
                if isinstance(held, (nn.ModuleDict, nn.ParameterDict)):
                    for name, _ in held.named_parameters():
                        # 'default.weight' in a ModuleDict, 'default' in a ParameterDict.
                        renamed[f"{path}.{adapter}.{name}"] = f"{path}.{adapter}"
    return {renamed.get(name, name): parameter for name, parameter in model.named_parameters()}


def exchanged_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, and so travel, by canonical key in sorted order."""
    return {key: parameter for key, parameter in sorted(canonical_parameters(model).items()) if parameter.requires_grad}


def exchanged_state(model: nn.Module) -> Tensors:
    """Copies of the exchanged tensors as numpy arrays, by canonical key."""
    return {key: parameter.detach().cpu().numpy().copy() for key, parameter in exchanged_parameters(model).items()}


def load_exchanged(model: nn.Module, tensors: Tensors) -> None:
    """Copies `tensors` (checked by the caller, see `check_tensors`) into the model's exchanged parameters."""
    with torch.no_grad():
        for key, parameter in exchanged_parameters(model).items():
            parameter.copy_(torch.tensor(tensors[key]))

