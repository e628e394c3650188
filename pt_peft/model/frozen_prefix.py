"""The part of a model that no training changes: a fixed function of the image, which needs computing once for each.

A linear probe is frozen up to its head, adapters in the last k of L blocks up to block L - k. What the frozen part makes of an
image (its *features*) is kept by `pt_peft.data.features`; training and evaluation then go on from there.
"""

import torch
from timm.layers import DropPath, PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pt_peft.model.adapted_model import AdaptedModel

_RANDOM = (nn.Dropout, DropPath, PatchDropout)


class FrozenPrefix:
    """Everything before the first part of a model that trains; see `frozen_prefix`."""

    def __init__(self, module: nn.Module, blocks: int | None):
        """Args:
        blocks: how many blocks belong to it; None for all that comes before the classifier.
        """
        self._module = module
        self.blocks = blocks

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Of images float32 (B,3,S,S), normalised: pooled (B,d), or tokens (B,N,d)."""
        module = self._module
        if self.blocks is None:
            return module.forward_head(module.forward_features(images), pre_logits=True)
        tokens = module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(images))))
        return module.blocks[: self.blocks](tokens)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The rest of the model: (B,K)."""
        module = self._module
        if self.blocks is None:
            return module.head(module.head_drop(features))
        for block in module.blocks[self.blocks :]:
            features = block(features)
        return module.forward_head(module.norm(features))


def frozen_prefix(model: AdaptedModel) -> FrozenPrefix | None:
    """The longest one of `model`; None if training changes the model from the patches or the first block on, if something in
    it is drawn at random in training, or if it is of a kind whose parts are not known here.
    """
    module = model.module
    head = {id(one) for one in module.get_classifier().modules()}
    changed = {key for part in model.parts for key in part.keys} | model.trained.keys() - model.head
    prefix = FrozenPrefix(module, None)
    before_head = [
        one for one in module.modules() if id(one) not in head and one is not getattr(module, "head_drop", None)
    ]
    if not changed:
        known = all(hasattr(module, name) for name in ("forward_features", "forward_head", "head", "head_drop"))
        return prefix if known and not any(map(_random, before_head)) else None
    # What timm makes of this class alone is written down above; what is none of these is part of no block.
    if type(module) is not VisionTransformer or any(
        key.split(".")[0] not in ("blocks", "norm", "fc_norm") for key in changed
    ):
        return None
    frozen = min((int(key.split(".")[1]) for key in changed if key.startswith("blocks.")), default=len(module.blocks))
    first = [module.patch_embed, module.pos_drop, module.patch_drop, module.norm_pre, *module.blocks[:frozen]]
    parts = [one for part in first for one in part.modules()]
    hooked = any(one._forward_hooks or one._forward_pre_hooks for one in parts)
    if not frozen or hooked or any(map(_random, parts)):
        return None
    return FrozenPrefix(module, frozen)


def _random(module: nn.Module) -> bool:
    """Whether it draws in training."""
    rates = (getattr(module, name, 0) for name in ("p", "drop_prob", "prob"))
    return isinstance(module, _RANDOM) and any(isinstance(rate, float) and rate > 0 for rate in rates)
