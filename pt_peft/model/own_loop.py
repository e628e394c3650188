"""A method on a timm model of the user's own, for a training loop of the user's own."""

import copy
from collections.abc import Mapping
from typing import cast

import torch
from pydantic import JsonValue
from torch import nn

from pt_peft import schema
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Method
from pt_peft.model.adapted_model import canonical_parameters, dry_run, inject
from pt_peft.model.backbone import freeze, go_through_layers, why_no_vit
from pt_peft.model.method import components
from pt_peft.model.vit import ViT
from pt_peft.torch_random import cpu_generator_restored


def adapt(model: nn.Module, method: str, **options: Mapping[str, JsonValue]) -> nn.Module:
    """A copy of a timm ViT in which a method's tensors and the classifier train, and nothing else.

    It is timm's own module with the method's layers in it: train, save and call it like any other. New tensors are
    drawn from torch's global generator; seed that to repeat a run. Where a method draws what trains anew in each round
    of a federation, all of it trains here.

    Args:
        model: a Vision Transformer that `timm.create_model` made, with ``num_classes`` of the task. It is not changed.
        method: a name of the registry, or several joined by ``+``.
        **options: options of each method that takes part, by its name, as in ``method.options`` of an experiment:
            ``lora={"rank": 4}``.

    Returns:
        The copy, on the same device. Exactly the trained tensors have ``requires_grad``.

    Raises:
        UserError: if the model is no plain ViT, the method or an option is unknown, or the method cannot apply to it.
    """
    if lacks := why_no_vit(model):
        raise UserError(f"adapt: the model is a {type(model).__name__}, {lacks}.")
    chosen = schema.parse(Method, {"name": method, "options": options}, "adapt")
    methods = components(chosen)
    module = cast(ViT, copy.deepcopy(model))
    device = next(module.parameters()).device
    architecture = str(module.pretrained_cfg.get("architecture", type(module).__name__))
    go_through_layers(module)
    parts = inject(module, methods, architecture)
    module.to(device)
    freeze(module)
    parameters = canonical_parameters(module)
    trained = {key: parameters[key] for part in parts for key in part.keys}
    for parameter in (*trained.values(), *module.get_classifier().parameters()):
        parameter.requires_grad_(True)
    with cpu_generator_restored():
        dry_run(module, trained, _image_size(module), f"method '{method}'", architecture)
    return module


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the tensors that train, by canonical key, in sorted order.

    Args:
        model: as `adapt` returned it.
    """
    return {key: parameter.detach().clone() for key, parameter in _trained(model).items()}


def load_trained_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copies a state that `trained_state` returned, of this model or one like it, into `model`.

    Args:
        model: as `adapt` returned it.
        state: a tensor for each that trains, of the same shape.

    Raises:
        UserError: naming the first tensor that is missing, unknown or of another shape; nothing is copied then.
    """
    trained = _trained(model)
    if differing := sorted(trained.keys() ^ state.keys()):
        how = "lacks a tensor that trains" if differing[0] in trained else "has a tensor that does not train here"
        raise UserError(f"load_trained_state: the state {how}, '{differing[0]}' ({len(differing)} differ in all).")
    for key, parameter in trained.items():
        if parameter.shape != state[key].shape:
            raise UserError(
                f"load_trained_state: '{key}' has shape {tuple(state[key].shape)}; {tuple(parameter.shape)} would be "
                "right."
            )
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(state[key])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = canonical_parameters(cast(ViT, model))
    return {key: parameter for key, parameter in sorted(parameters.items()) if parameter.requires_grad}


def _image_size(module: ViT) -> tuple[int, int]:
    """Height and width that the model takes, pixels."""
    size = getattr(module.patch_embed, "img_size", None) or module.pretrained_cfg["input_size"][1:]
    return (int(size[0]), int(size[1]))
