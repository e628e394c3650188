"""The part of a model that training never changes: a fixed function of the image, computed once for each image.

A linear probe is frozen up to its head, adapters in the last k of L blocks up to block L - k. `pt_peft.data.features`
keeps the outputs of the frozen part (the *features*), and training and evaluation go on from there.
"""

from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pt_peft.experiment.sections import Precision
from pt_peft.model.adapted_model import AdaptedModel
from pt_peft.model.library_internals import has_forward_hooks
from pt_peft.model.model_input import Normalisation, autocast
from pt_peft.model.vit import ViT

_RANDOM = (nn.Dropout, DropPath, PatchDropout)


class FrozenPrefix:
    """All parts of a model before the first one that trains; `frozen_prefix` makes one.

    Attributes:
        blocks: number of blocks that belong to it; None if all that comes before the classifier does.
    """

    def __init__(self, module: ViT, blocks: int | None):
        """See the attributes; `module` is the whole model."""
        self._module = module
        self.blocks = blocks

    @torch.inference_mode()
    def features(
        self, pixels: npt.NDArray[np.uint8], normalise: Normalisation, precision: Precision
    ) -> npt.NDArray[np.float32]:
        """The outputs of the frozen part, with the model in eval mode.

        Args:
            pixels: (B,3,S,S).
            normalise: on the model's device.
            precision: that the model computes in.

        Returns:
            Pooled features (B,d), or tokens (B,N,d).
        """
        device = normalise.mean.device
        self._module.eval()
        with autocast(precision, device):
            images = normalise(torch.tensor(pixels).float().div_(255).to(device))
            return self._frozen(images).float().cpu().numpy()

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """The rest of the model: `features` (B,d) or (B,N,d) to logits (B,K)."""
        module = self._module
        if self.blocks is None:
            return module.head(module.head_drop(features))
        for block in module.blocks[self.blocks :]:
            features = block(features)
        return module.forward_head(module.norm(features))

    def _frozen(self, images: torch.Tensor) -> torch.Tensor:
        module = self._module
        if self.blocks is None:
            return module.forward_head(module.forward_features(images), pre_logits=True)
        (found,) = module.forward_intermediates(
            images,
            indices=[self.blocks - 1],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not module.num_prefix_tokens:
            return found
        patches, prefix = found
        return torch.cat((prefix, patches), dim=1)


def frozen_prefix(model: AdaptedModel) -> FrozenPrefix | None:
    """The longest frozen prefix of `model`.

    What a method adds or changes lies behind it, so that it computes what the plain backbone does.

    Returns:
        None if training changes the model from the patches or the first block on, if something in the frozen part is
        drawn at random in training, or if the architecture's parts are not known here.
    """
    module = model.module
    changed = {key for part in model.parts for key in part.keys} | model.trained.keys() - model.head
    if not changed:
        return _all_before_head(module)
    # `FrozenPrefix` knows the parts of this class alone, and the keys of its parts behind the patches.
    kind = cast(type[nn.Module], type(module))  # `ViT` is no class of timm
    if kind is not VisionTransformer or any(key.split(".")[0] not in ("blocks", "norm", "fc_norm") for key in changed):
        return None
    frozen = min((int(key.split(".")[1]) for key in changed if key.startswith("blocks.")), default=len(module.blocks))
    first: list[nn.Module] = [module.patch_embed, module.pos_drop, module.patch_drop, module.norm_pre]
    parts = [one for part in (*first, *module.blocks[:frozen]) for one in part.modules()]
    if not frozen or any(has_forward_hooks(one) or _is_random(one) for one in parts):
        return None
    return FrozenPrefix(module, frozen)


def _all_before_head(module: ViT) -> FrozenPrefix | None:
    if not all(hasattr(module, name) for name in ("forward_features", "forward_head", "head", "head_drop")):
        return None
    behind = {*module.get_classifier().modules(), module.head_drop}
    if any(_is_random(one) for one in module.modules() if one not in behind):
        return None
    return FrozenPrefix(module, None)


def _is_random(module: nn.Module) -> bool:
    """Whether `module` draws random numbers in training."""
    rates = (getattr(module, name, 0) for name in ("p", "drop_prob", "prob"))
    return isinstance(module, _RANDOM) and any(isinstance(rate, float) and rate > 0 for rate in rates)
