"""Methods that are tuners of HF PEFT, on the linear layers of timm blocks."""

import warnings
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, cast

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import nn
from torch.nn import functional

from pt_peft.errors import UserError
from pt_peft.model.layers import NAMES, LastBlocks, Target, chosen_blocks
from pt_peft.model.method import PeftMethod
from pt_peft.model.vit import Layer, ViT

QkvPart = Literal["q", "k", "v"]
QKV: tuple[QkvPart, ...] = ("q", "k", "v")


class LinearLayers(LastBlocks):
    """The linear layers that a tuner wraps."""

    targets: tuple[Target, ...] = Field(default=("qkv",), min_length=1)
    """Layers of every chosen block: the query-key-value and output projections of its attention, the layers of its
    MLP."""


class LinearLayersAndParts(LinearLayers):
    """The linear layers that a tuner wraps, or parts of the query-key-value projection."""

    qkv_parts: tuple[QkvPart, ...] = Field(default=QKV, min_length=1)
    """Parts of ``qkv``. Each has an adapter of its own, also where ``qkv`` is one fused layer, unless all are
    chosen."""


Config = TypeVar("Config", bound=LinearLayers)


def tuner_method(
    *,
    name: str,
    summary: str,
    paper: str,
    config: type[Config],
    tuner: Callable[[Config, list[str]], peft.PeftConfig],
    identity_at_start: bool,
    learning_rate: float,
    starts_from_backbone: bool = False,
    job: bool = False,
) -> PeftMethod[Config]:
    """The record of a method that is a tuner of HF PEFT.

    Args:
        name: as in `PeftMethod`, like all but `tuner`.
        summary: as in `PeftMethod`.
        paper: as in `PeftMethod`.
        config: as in `PeftMethod`.
        tuner: makes HF PEFT's config from the method's config and the paths of the layers that the tuner wraps.
        identity_at_start: as in `PeftMethod`.
        learning_rate: as in `PeftMethod`.
        starts_from_backbone: as in `PeftMethod`.
        job: as in `PeftMethod`.
    """

    def peft_config(model: ViT, config: Config) -> peft.PeftConfig:
        return tuner(config, target_paths(model, config))

    def inject(model: ViT, config: Config) -> None:
        if "qkv" in config.targets and set(_parts(config)) != set(QKV):
            _split_fused(model, config)
        try:
            made = peft_config(model, config)
            with warnings.catch_warnings():
                # peft warns where it takes another value than it was asked for.
                warnings.filterwarnings("error", category=UserWarning, module=r"peft\.")
                # As `peft.inject_adapter_in_model`, which refuses tuners whose layers share tensors.
                peft.PEFT_TYPE_TO_TUNER_MAPPING[peft.PeftType(made.peft_type)](model, {"default": made}, "default")
            vars(model).pop("peft_config", None)  # the next tuner, on other layers, would be mixed with it
        except (ValueError, RuntimeError, AssertionError, TypeError, UserWarning) as error:
            raise UserError(f"{' '.join(str(error).split())[:300]}") from None

    return PeftMethod(
        name=name,
        summary=summary,
        paper=paper,
        config=config,
        inject=inject,
        identity_at_start=identity_at_start,
        merge=fold_tuners,
        learning_rate=learning_rate,
        starts_from_backbone=starts_from_backbone,
        peft_config=peft_config,
        job=job,
    )


def peft_alpha(alpha: float) -> int:
    """`alpha` under the type that HF PEFT declares for its own; it computes with any number."""
    return cast(int, alpha)


def target_paths(model: ViT, config: LinearLayers) -> list[str]:
    """Paths of the linear layers that `config` chooses.

    Raises:
        UserError: if there is none of a kind, or another tuner wraps one already.
    """
    paths: list[str] = []
    for target in dict.fromkeys(config.targets):
        found = [
            path
            for block_path, block in chosen_blocks(model, config)
            for path in _paths(block, block_path, target, _parts(config))
        ]
        if not found:
            raise UserError(f"it has no linear layer '{target}' in its blocks.")
        paths.extend(found)
    return paths


def _parts(config: LinearLayers) -> tuple[QkvPart, ...]:
    return config.qkv_parts if isinstance(config, LinearLayersAndParts) else QKV


def _paths(block: Layer, block_path: str, target: Target, parts: tuple[QkvPart, ...]) -> Iterator[str]:
    """Yields the paths of the layers of one block that are `target`. Raises UserError as `target_paths` does."""
    for path, layer in block.named_modules(prefix=block_path):
        name = path.rpartition(".")[2]
        if name not in NAMES[target] or (name in ("q_proj", "k_proj", "v_proj") and name[0] not in parts):
            continue
        if isinstance(layer, BaseTunerLayer):
            raise UserError(f"layer '{path}' has another method's adapter already; give the two different targets.")
        if isinstance(layer, _SplitLinear):
            yield from (f"{path}.{part}" for part in QKV if part in parts)
        elif isinstance(layer, nn.Linear):
            yield path


def fold_tuners(model: ViT) -> None:
    """Replaces each layer that a tuner wraps by the plain linear layer with the same outputs, in place.

    Raises:
        UserError: if that needs a bias and the backbone's layer has none.
    """
    wrapped = {
        path: layer for path, layer in model.named_modules() if isinstance(layer, (BaseTunerLayer, _SplitLinear))
    }
    for path, layer in wrapped.items():
        parent, _, name = path.rpartition(".")
        if parent not in wrapped:
            setattr(model.get_submodule(parent), name, fold(layer, path))


@torch.no_grad()
def fold(layer: nn.Module, path: str) -> nn.Linear:
    """The linear layer with the same outputs as `layer`, which is affine in eval mode.

    bias = layer(0) and W = (layer(I) - bias)ᵀ.

    Args:
        layer: a linear layer, plain or wrapped by a tuner.
        path: its path in the model, for the error.

    Raises:
        UserError: if that needs a bias and the backbone's layer has none.
    """
    # `target_paths` chooses linear layers alone.
    base = cast(nn.Linear, layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer)
    has_bias = getattr(base, "bias", None) is not None
    probe = base.weight
    bias = layer(probe.new_zeros(1, base.in_features))[0]
    if not has_bias and bias.abs().max() > 0:
        raise UserError(
            f"cannot be merged: the adapter of '{path}' shifts its output, and the backbone's layer has no bias."
        )
    folded = nn.Linear(base.in_features, base.out_features, bias=has_bias, device=probe.device)
    folded.weight.copy_((layer(torch.eye(base.in_features, device=probe.device)) - bias).T)
    if has_bias:
        folded.bias.copy_(bias)
    return folded


def _split_fused(model: ViT, config: LinearLayers) -> None:
    """Replaces each fused projection of the chosen blocks by one whose parts are layers.

    Raises:
        UserError: if a fused projection does not have three equal parts.
    """
    for _, block in chosen_blocks(model, config):
        for module in list(block.modules()):
            fused = getattr(module, "qkv", None)
            if type(fused) is nn.Linear:
                width, rest = divmod(fused.out_features, 3)
                if rest or width != getattr(module, "attn_dim", width):
                    raise UserError("field 'qkv_parts': its fused projection is not of three equal parts.")
                module.qkv = _SplitLinear(fused)


class _SplitLinear(nn.Linear):
    """A fused projection whose parts are layers.

    It keeps the fused layer's tensors under their names; the parts have none of their own.
    """

    def __init__(self, fused: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = fused.in_features, fused.out_features
        self.weight, self.bias = fused.weight, fused.bias
        self.q, self.k, self.v = (_Slice(self, index) for index in range(3))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.q(input), self.k(input), self.v(input)), dim=-1)


class _Slice(nn.Linear):
    """One part of a `_SplitLinear`: a third of its rows."""

    def __init__(self, whole: _SplitLinear, index: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features = whole.in_features, whole.out_features // 3
        self._whole = (whole,)  # in a tuple, as a module of a module would be its child
        self._rows = slice(index * self.out_features, (index + 1) * self.out_features)

    @property
    def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  # no tensor of its own
        return self._whole[0].weight[self._rows]

    @property
    def bias(self) -> torch.Tensor | None:
        bias = getattr(self._whole[0], "bias", None)
        return None if bias is None else bias[self._rows]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight, self.bias)
