"""Methods that are tuners of HF peft, on the linear layers of timm blocks."""

import warnings
from collections.abc import Callable
from typing import Literal

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import nn
from torch.nn import functional

from pt_peft.errors import UserError
from pt_peft.model.layers import NAMES, LastBlocks, Target, chosen_blocks
from pt_peft.model.method import PeftMethod
from pt_peft.schema import Strict

QkvPart = Literal["q", "k", "v"]
QKV: tuple[QkvPart, ...] = ("q", "k", "v")


class LinearLayers(LastBlocks):
    """The linear layers that a tuner acts on."""

    targets: tuple[Target, ...] = Field(default=("qkv",), min_length=1)
    """Of every chosen block: the query-key-value and output projections of its attention, the layers of its MLP."""


class LinearLayersAndParts(LinearLayers):
    """The same, down to the parts of the query-key-value projection."""

    qkv_parts: tuple[QkvPart, ...] = Field(default=QKV, min_length=1)
    """Of ``qkv``, also where it is one fused layer: then each part has an adapter of its own, unless all are chosen."""


def tuner_method(
    *,
    tuner: Callable[[Strict, list[str]], peft.PeftConfig],
    **fields,
) -> PeftMethod:
    """The record of a method that is a tuner of HF peft.

    Args:
        tuner: makes the tuner's config of the method's config and the paths of the layers it acts on.
        **fields: of `PeftMethod`; ``merge`` only to say that the update is not linear in the layer's input (None).
    """

    def peft_config(model: nn.Module, config: LinearLayers) -> peft.PeftConfig:
        paths = target_paths(model, config)
        made = tuner(config, paths)
        made.target_modules = set(paths)
        return made

    def inject(model: nn.Module, config: LinearLayers) -> None:
        if set(getattr(config, "qkv_parts", QKV)) != set(QKV) and "qkv" in config.targets:
            _split_fused(model, config)
        try:
            made = peft_config(model, config)
            with warnings.catch_warnings():
                # peft warns where it takes another value than it was asked for.
                warnings.filterwarnings("error", category=UserWarning, module=r"peft\.")
                # As `peft.inject_adapter_in_model`, which refuses tuners whose layers share tensors.
                PEFT_TYPE_TO_TUNER_MAPPING[made.peft_type](model, {"default": made}, "default")
            vars(model).pop("peft_config", None)  # a next tuner's, on other layers, would be mixed with it
        except UserError:
            raise
        except (ValueError, RuntimeError, AssertionError, TypeError, UserWarning) as error:
            raise UserError(f"{' '.join(str(error).split())[:300]}") from None

    return PeftMethod(**{"inject": inject, "peft_config": peft_config, "merge": fold_tuners, **fields})


def target_paths(model: nn.Module, config: LinearLayers) -> list[str]:
    """Paths of the linear layers that `config` chooses.

    Raises:
        UserError: if there is none of a kind, or another tuner acts on one already.
    """
    parts = getattr(config, "qkv_parts", QKV)
    paths = []
    for target in dict.fromkeys(config.targets):
        found = []
        for block_path, block in chosen_blocks(model, config):
            for path, layer in block.named_modules(prefix=block_path):
                name = path.rpartition(".")[2]
                if name not in NAMES[target] or (name in ("q_proj", "k_proj", "v_proj") and name[0] not in parts):
                    continue
                if isinstance(layer, BaseTunerLayer):
                    raise UserError(
                        f"layer '{path}' has another method's adapter already; give the two different targets."
                    )
                if isinstance(layer, _SplitLinear):
                    found.extend(f"{path}.{part}" for part in QKV if part in parts)
                elif isinstance(layer, nn.Linear):
                    found.append(path)
        if not found:
            raise UserError(f"it has no linear layer '{target}' in its blocks.")
        paths.extend(found)
    return paths


def fold_tuners(model: nn.Module) -> None:
    """Replaces each layer that a tuner wraps by the plain linear layer that it amounts to, in place."""
    wrapped = {
        path: layer for path, layer in model.named_modules() if isinstance(layer, (BaseTunerLayer, _SplitLinear))
    }
    for path, layer in wrapped.items():
        parent, _, name = path.rpartition(".")
        if parent not in wrapped:
            setattr(model.get_submodule(parent), name, fold(layer, path))


@torch.no_grad()
def fold(layer: nn.Module, path: str) -> nn.Linear:
    """The linear layer with the same outputs as `layer`, an affine map in eval mode: bias = layer(0), W = layer(I) - bias.

    Raises:
        UserError: if that needs a bias and the backbone's layer has none.
    """
    base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    probe = base.weight
    bias = layer(probe.new_zeros(1, base.in_features))[0]
    if base.bias is None and bias.abs().max() > 0:
        raise UserError(
            f"cannot be merged: the adapter of '{path}' shifts its output, and the backbone's layer has no bias."
        )
    folded = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device=probe.device)
    folded.weight.copy_((layer(torch.eye(base.in_features, device=probe.device)) - bias).T)
    if base.bias is not None:
        folded.bias.copy_(bias)
    return folded


def _split_fused(model: nn.Module, config: LinearLayersAndParts) -> None:
    for _, block in chosen_blocks(model, config):
        for module in list(block.modules()):
            fused = getattr(module, "qkv", None)
            if type(fused) is nn.Linear:
                if fused.out_features % 3 or fused.out_features // 3 != getattr(
                    module, "attn_dim", fused.out_features // 3
                ):
                    raise UserError("field 'qkv_parts': its fused projection is not of three equal parts.")
                module.qkv = _SplitLinear(fused)


class _SplitLinear(nn.Linear):
    """A fused projection whose parts are layers. It keeps the fused layer's tensors under their names; the parts have none of
    their own.
    """

    def __init__(self, fused: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = fused.in_features, fused.out_features
        self.weight, self.bias = fused.weight, fused.bias
        for index, part in enumerate(QKV):
            self.add_module(part, _Slice(self, index))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.q(x), self.k(x), self.v(x)), dim=-1)


class _Slice(nn.Linear):
    def __init__(self, whole: _SplitLinear, index: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features = whole.in_features, whole.out_features // 3
        self._whole = (whole,)  # in a tuple, as a module of a module would be its child
        self._rows = slice(index * self.out_features, (index + 1) * self.out_features)

    @property
    def weight(self) -> torch.Tensor:
        return self._whole[0].weight[self._rows]

    @property
    def bias(self) -> torch.Tensor | None:
        return None if self._whole[0].bias is None else self._whole[0].bias[self._rows]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)
