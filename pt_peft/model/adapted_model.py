"""A backbone with a method's tensors and a head: which of its tensors train, and which travel."""

import copy
import fnmatch
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from pt_peft.errors import UserError
from pt_peft.exchange.lora_pairs import RESIDUAL
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors, TensorSpec
from pt_peft.experiment.sections import ModelSpec, Role
from pt_peft.model.backbone import create_backbone, freeze, head_name
from pt_peft.model.method import PeftMethod, components
from pt_peft.model.vit import ViT
from pt_peft.schema import Strict
from pt_peft.seeds import derive_seed
from pt_peft.torch_random import cpu_generator_restored, seed_torch


@dataclass(frozen=True)
class Part:
    """An elementary method of a model."""

    method: PeftMethod[Any]
    """Its record."""
    config: Strict
    """Its options, of the record's ``config``."""
    keys: frozenset[str]
    """Canonical keys of the tensors that it trains."""


class AdaptedModel:
    """A timm ViT with a method's tensors and a head. Exactly the trained tensors have ``requires_grad``.

    `build_model` makes one.

    Attributes:
        module: maps normalised images float32 (B,3,S,S) to logits (B,K).
        parts: the elementary methods, in the order of their injection.
        head: keys of the classifier.
        personal: keys of the tensors that train and never leave their site.
        trained: every parameter that ever trains, by canonical key in sorted order.
    """

    def __init__(self, module: ViT, spec: ModelSpec, parts: list[Part]):
        head = {f"{head_name(module)}.{name}" for name, _ in module.get_classifier().named_parameters()}
        roles = {**_roles(spec, parts), **dict.fromkeys(head, spec.method.head)}
        self.module = module
        self.parts = parts
        self.head = frozenset(head)
        self.personal = frozenset(key for key, role in roles.items() if role == "local")
        keys = {key for key, role in roles.items() if role != "frozen"}
        self.trained: dict[str, nn.Parameter] = {
            key: parameter for key, parameter in sorted(canonical_parameters(module).items()) if key in keys
        }
        self._seed = spec.seed
        self.activate(self.trained.keys())

    def activate(self, keys: Set[str]) -> list[nn.Parameter]:
        """Lets the trained tensors in `keys` have gradients, and no other. Returns them in the order of their keys."""
        freeze(self.module)
        active = [parameter for key, parameter in self.trained.items() if key in keys]
        for parameter in active:
            parameter.requires_grad_(True)
        return active

    def exchange(self, rounds: int) -> Exchange:
        """Which tensors travel in each of `rounds` rounds."""
        specs = {key: spec for key, spec in self.specs().items() if key not in self.personal}
        draws = [(part, part.method.round_keys) for part in self.parts if part.method.round_keys]
        always = self.head.union(*(part.keys for part in self.parts if not part.method.round_keys)) & specs.keys()
        drawn = tuple(
            frozenset[str]().union(*(draw(sorted(part.keys), part.config, self._seed, number) for part, draw in draws))
            & specs.keys() - always
            for number in range(rounds if draws else 0)
        )
        computed = frozenset(key for key in always if key.endswith(f".{RESIDUAL}"))
        return Exchange(specs, always, drawn, computed, head=self.head & specs.keys())

    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each trained tensor, by canonical key."""
        return {
            key: TensorSpec(tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."))
            for key, parameter in self.trained.items()
        }

    def state(self) -> Tensors:
        """Copies of the trained tensors as numpy arrays, by canonical key."""
        return {key: parameter.detach().cpu().numpy().copy() for key, parameter in self.trained.items()}

    def load(self, tensors: Tensors) -> None:
        """Copies `tensors` into the trained tensors of the same keys.

        Args:
            tensors: as `check_tensors` accepts them; trained tensors of other keys stay as they are.
        """
        with torch.no_grad():
            for key, value in tensors.items():
                self.trained[key].copy_(torch.tensor(value))

    def merge(self) -> None:
        """Folds the adapters into the backbone, so that ``module`` is a plain timm model afterwards.

        Raises:
            UserError: if a method cannot be merged; the message names it.
        """
        folds: list[Callable[[ViT], None]] = []
        # Tuners first: their fold takes in what other methods hang on the layers that they wrap.
        for part in sorted(self.parts, key=lambda part: part.method.peft_config is None):
            if part.method.merge is None:
                raise UserError(
                    f"method '{part.method.name}' cannot be merged into the backbone: it is no change of the "
                    "backbone's tensors."
                )
            folds.append(part.method.merge)
        self.module.eval()
        for fold in folds:
            fold(self.module)


def build_model(spec: ModelSpec, weights: Path | None) -> AdaptedModel:
    """The backbone with the method's adapters and a fresh head, initialised from the seed.

    torch's global CPU generator is left as it was.

    Args:
        spec: backbone, classes, method and seed.
        weights: the backbone's file; None leaves the backbone random, which is enough to know the exchanged tensors.

    Raises:
        UserError: if the method or the backbone is unknown, or the method cannot apply to the backbone.
    """
    methods = components(spec.method)
    with cpu_generator_restored():
        seed_torch(derive_seed(spec.seed, "backbone"))
        module = create_backbone(spec.backbone, len(spec.classes), weights)
        # Reset after the backbone so that the draw does not depend on whether weights were loaded.
        seed_torch(derive_seed(spec.seed, "initial state"))
        head = module.get_classifier()
        nn.init.trunc_normal_(head.weight, std=0.02)
        if getattr(head, "bias", None) is not None:
            nn.init.zeros_(head.bias)
        model = AdaptedModel(module, spec, inject(module, methods, spec.backbone.name))
        if not model.trained:
            raise UserError(
                "experiment: fields 'method.head' and 'method.roles' make every tensor frozen, so that nothing "
                "would train; 'exchanged' for some would be right."
            )
        size = spec.backbone.image_size
        dry_run(module, model.trained, (size, size), f"method '{spec.method.name}'", spec.backbone.name)
    if not model.trained.keys() - model.personal:
        raise UserError(
            f"experiment: field 'method.head' is '{spec.method.head}', but method '{spec.method.name}' exchanges "
            "nothing else, so that nothing would travel; 'exchanged' would be right."
        )
    return model


def inject(module: ViT, methods: Sequence[tuple[PeftMethod[Any], Strict]], backbone: str) -> list[Part]:
    """Adds the tensors of `methods` to `module`, in order, and says which keys each of them trains.

    ``requires_grad`` is left to the caller. Random draws come from torch's global generator.

    Args:
        module: is changed.
        methods: as `components` returns them.
        backbone: the backbone's name, for errors.

    Raises:
        UserError: if a method cannot apply to the backbone; the module may hold the tensors of an earlier one then.
    """
    trained_by: list[set[int]] = []
    for method, config in methods:
        freeze(module)
        try:
            method.inject(module, config)
        except UserError as error:
            raise UserError(f"method '{method.name}' cannot be applied to backbone '{backbone}': {error}") from None
        trained_by.append({id(parameter) for parameter in module.parameters() if parameter.requires_grad})
    # Keys are known only now: a later method may have wrapped the layers of an earlier one.
    parameters = canonical_parameters(module)
    return [
        Part(method, config, frozenset(key for key, parameter in parameters.items() if id(parameter) in ids))
        for (method, config), ids in zip(methods, trained_by, strict=True)
    ]


def _roles(spec: ModelSpec, parts: list[Part]) -> dict[str, Role]:
    """The role of each tensor of the methods, by key.

    Raises:
        UserError: for a pattern without effect, or two that disagree.
    """
    keys = sorted(frozenset[str]().union(*(part.keys for part in parts)))
    roles: dict[str, Role] = {}
    for pattern, role in spec.method.roles.items():
        field = f"experiment: field 'method.roles.{pattern}'"
        fitting = fnmatch.filter(keys, pattern)
        if not fitting:
            known = (
                f"its tensors are '{keys[0]}' … '{keys[-1]}'" if keys else "it has none but the head, see 'method.head'"
            )
            raise UserError(f"{field} fits no tensor of method '{spec.method.name}'; {known}.")
        for key in fitting:
            if roles.setdefault(key, role) != role:
                raise UserError(f"{field} makes tensor '{key}' {role}, but another pattern makes it {roles[key]}.")
    return {**dict.fromkeys(keys, "exchanged"), **roles}


def canonical_parameters(module: ViT) -> dict[str, nn.Parameter]:
    """All parameters of `module` under the keys that they have in every file, payload and chart.

    A backbone tensor has timm's own key (``blocks.3.attn.qkv.weight``), also while a tuner wraps its layer. An adapter
    has its block's path and its own name (``blocks.3.attn.qkv.lora_A``).
    """
    renamed: dict[str, str] = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        renamed.update(
            (f"{path}.base_layer.{name}", f"{path}.{name}") for name, _ in layer.get_base_layer().named_parameters()
        )
        for adapter in layer.adapter_layer_names:
            held = getattr(layer, adapter, None)
            if isinstance(held, nn.Module):
                names = [name for name, _ in held.named_parameters()]
                # 'default' in a ParameterDict, 'default.weight' in a ModuleDict, 'default.0' if there are several.
                renamed.update(
                    (
                        f"{path}.{adapter}.{name}",
                        f"{path}.{adapter}" + (name.removeprefix("default") if len(names) > 1 else ""),
                    )
                    for name in names
                )
    return {renamed.get(name, name): parameter for name, parameter in module.named_parameters()}


_LARGE = 10**11
"""Parameters times pixels from which a step is slower than half a second, which shapes alone always take."""


def dry_run(
    module: ViT, trained: Mapping[str, nn.Parameter], size: tuple[int, int], method: str, backbone: str
) -> None:
    """Tries a training step on a blank image, in a large model by shapes alone. Some layers draw random values in it.

    Args:
        module: is not changed.
        trained: what must get a gradient, by key.
        size: height and width of the images, pixels.
        method: what was added to the model, for errors.
        backbone: the backbone's name, for errors.

    Raises:
        UserError: if the model does not take an image, with the reason, or if a tensor is out of reach of the
            gradient: some layers pass by what wraps them, or read a weight's values only.
    """
    cannot = f"{method} cannot be applied to backbone '{backbone}'"
    parameters = list(module.parameters())
    large = size[0] * size[1] * sum(parameter.numel() for parameter in parameters) >= _LARGE
    device = "meta" if large or any(parameter.is_meta for parameter in parameters) else "cpu"
    # A copy, but for the frozen parameters, of which a copy could be large.
    tried: dict[int, torch.Tensor] = {id(buffer): buffer.to(device, copy=True) for buffer in module.buffers()}
    for parameter in parameters:
        tried[id(parameter)] = nn.Parameter(parameter.to(device, copy=parameter.requires_grad), parameter.requires_grad)
    try:
        copy.deepcopy(module, tried)(torch.zeros(2, 3, *size, device=device)).sum().backward()
    except NotImplementedError:
        return  # an operation whose shapes depend on values
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        shown = size[0] if size[0] == size[1] else f"{size[0]}x{size[1]}"
        raise UserError(f"{cannot}: with it the model does not take images of {shown} pixels ({reason}).") from None
    unreached = [key for key, parameter in trained.items() if tried[id(parameter)].grad is None]
    if unreached:
        raise UserError(
            f"{cannot}: no gradient would reach {len(unreached)} of the tensors that it trains, '{unreached[0]}' among "
            "them."
        )
