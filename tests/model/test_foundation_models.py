"""Pathology's foundation models, whose cards build them with classes: the same model from names in JSON."""

from typing import cast

import pytest
import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from helpers import changed
from pt_peft.errors import OutsideLimits
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.sections import Backbone
from pt_peft.model.adapted_model import build_model
from pt_peft.model.backbone import create_backbone
from pt_peft.model.vit import ViT

# As in their cards on Hugging Face, without img_size and num_classes.
UNI2_H = {
    "patch_size": 14,
    "depth": 24,
    "num_heads": 24,
    "init_values": 1e-5,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True,
    "reg_tokens": 8,
    "dynamic_img_size": True,
}
VIRCHOW2 = {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, "dynamic_img_size": True}
CARDS = {"UNI2-h": ("vit_giant_patch14_224", UNI2_H), "Virchow2": ("vit_huge_patch14_224", VIRCHOW2)}
IN_JSON = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
CLASSES = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def backbone(name, kwargs):
    return Backbone(name=name, kwargs={**kwargs, **IN_JSON}, image_size=224, sha256="0" * 64)


@pytest.mark.parametrize("model", CARDS)
def test_the_tensors_of_the_card(model):
    name, kwargs = CARDS[model]
    with torch.device("meta"):
        ours = create_backbone(backbone(name, kwargs), 4, None).state_dict()
        theirs = timm.create_model(name, num_classes=4, img_size=224, **kwargs, **CLASSES).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@torch.no_grad()
@pytest.mark.parametrize("model", CARDS)
def test_the_outputs_of_the_card(model, tmp_path):
    name, kwargs = CARDS[model]
    kwargs = {**kwargs, **SMALL, "init_values": 1.0}
    theirs = cast(ViT, timm.create_model(name, num_classes=4, img_size=224, **kwargs, **CLASSES).eval())
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = create_backbone(backbone(name, kwargs), 4, tmp_path / "pytorch_model.bin").eval()
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(
        ours.forward_head(ours.forward_features(images), pre_logits=True),
        theirs.forward_head(theirs.forward_features(images), pre_logits=True),
    )


@pytest.mark.parametrize("method", ["lora", "vpt_deep", "adaptformer", "pixel_prompt"])
def test_methods_and_limits_take_them(method, tiny):
    """Hooks see patches in timm's usual shape, whatever ``dynamic_img_size`` says."""
    kwargs = {**UNI2_H, **SMALL, **IN_JSON, "patch_size": 8}
    experiment = changed(tiny, backbone={"kwargs": kwargs}, method={"name": method, "options": {}})
    model = build_model(experiment.model, None).module
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    Limits(min_sites=None).check(experiment)
    for name in ("dynamic_img_pad", "patch_drop_rate", "block_fn"):
        with pytest.raises(OutsideLimits, match=f"'{name}' in backbone.kwargs"):
            Limits(min_sites=None).check(changed(experiment, backbone={"kwargs": {**kwargs, name: 0.5}}))
