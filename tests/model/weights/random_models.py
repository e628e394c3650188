"""Random models, and what the library loads of their files."""

from typing import cast

import timm
import torch

from pt_peft.experiment.sections import Backbone
from pt_peft.model.backbone import create_backbone
from pt_peft.model.vit import ViT

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
PLAIN = "vit_tiny_patch16_224"
SIZE = 32


def original(name=PLAIN, classes=7, image_size=SIZE, **kwargs):
    """A random model of which nothing is at its start: norms too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = timm.create_model(name, num_classes=classes, img_size=image_size, **{**SMALL, **kwargs})
        model = cast(ViT, made.eval())
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value) * 0.1)
    return model


def load(path, name=PLAIN, image_size=SIZE, allow_missing=(), allow_unused=(), **kwargs):
    backbone = Backbone(
        name=name,
        kwargs={**SMALL, **kwargs},
        image_size=image_size,
        sha256="0" * 64,
        allow_missing=tuple(allow_missing),
        allow_unused=tuple(allow_unused),
    )
    return create_backbone(backbone, 4, path).eval()


@torch.no_grad()
def same_features(loaded, model, atol=0.0):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    pooled = [one.forward_head(one.forward_features(images), pre_logits=True) for one in (loaded, model)]
    return torch.allclose(*pooled, rtol=0, atol=atol)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}
