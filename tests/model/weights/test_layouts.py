"""Weights files with the names of other projects: the same features as the model that they were made from."""

import argparse
import re

import numpy as np
import pytest
import torch
from random_models import PLAIN, load, original, prefixed, same_features
from safetensors.torch import save_file

from pt_peft.errors import UserError
from pt_peft.experiment.sections import Backbone
from pt_peft.model.weights.loading import load_weights


def noise(state):
    return {key: torch.randn_like(value) for key, value in state.items()}


def text_tower():
    names = ("transformer.resblocks.0.ln_1.weight", "token_embedding.weight", "positional_embedding", "logit_scale")
    return {name: torch.ones(3) for name in names}


def mae(state):
    decoder = ("decoder_pos_embed", "decoder_blocks.0.norm1.weight", "decoder_pred.weight", "mask_token")
    encoder = {key: value for key, value in state.items() if not key.startswith("head.")}
    model = {**encoder, **{name: torch.ones(3) for name in decoder}}
    return {"model": model, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}


def dino(state):
    teacher = {
        **prefixed(state, "backbone."),
        "head.mlp.0.weight": torch.ones(3),
        "head.last_layer.weight_v": torch.ones(3),
    }
    return {
        "student": prefixed(noise(state), "module.backbone."),
        "teacher": teacher,
        "args": argparse.Namespace(arch="vit"),
    }


def dino_side_by_side(state):
    heads = {"teacher.dino_head.mlp.0.weight": torch.ones(3), "student.ibot_head.mlp.0.weight": torch.ones(3)}
    encoders = {**prefixed(noise(state), "student.backbone."), **prefixed(state, "teacher.backbone.")}
    return {"model": {**encoders, **heads}}


def moco_v3(state):
    encoder = {key: value for key, value in state.items() if not key.startswith("head.")}
    encoders = {**prefixed(noise(encoder), "module.momentum_encoder."), **prefixed(encoder, "module.base_encoder.")}
    heads = {"module.base_encoder.head.0.weight": torch.ones(3), "module.predictor.1.running_mean": torch.ones(3)}
    return {"epoch": 300, "arch": "vit_base", "state_dict": {**encoders, **heads}, "optimizer": {}}


def open_clip(state):
    trunk = {key: value for key, value in state.items() if not key.startswith("head.")}
    others = {"visual.head.proj.weight": torch.ones(5, 48), "text.transformer.embeddings.weight": torch.ones(3)}
    others["logit_scale"] = torch.ones(())
    return {"state_dict": {**prefixed(trunk, "module.visual.trunk."), **prefixed(others, "module.")}}


def compiled_and_parallel(state):
    return {"state_dict_ema": prefixed(state, "_orig_mod.module."), "state_dict": noise(state)}


def wrapped_inside(state):
    """As FSDP, checkpointing of activations and torch.compile, block by block, name tensors."""
    inner = "blocks.\\1._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod."
    return prefixed({re.sub(r"blocks\.(\d+)\.", inner, key): value for key, value in state.items()}, "_forward_module.")


def optimizer_by_name(state):
    """The state of an optimiser that has the names of the tensors."""
    return {"optimizer": {"state": {"exp_avg": noise(state)}}, "net": {"module": state}}


WRAPPERS = [
    ("ema", "net"),
    ("ema", "model"),
    ("params_ema", "params"),
    ("teacher", "student"),
    ("backbone", "optimizer"),
]
WRAPPERS += [("model", "somebody's own"), ("somebody's own", None)]


@pytest.mark.parametrize(("taken", "not_taken"), WRAPPERS)
@pytest.mark.parametrize("as_prefix", [False, True])
def test_wrappers(taken, not_taken, as_prefix, tmp_path):
    """As entries of a checkpoint or as parts of names, alone or beside one that its authors do not evaluate."""
    model = original()
    state = model.state_dict()
    both = {not_taken: noise(state), taken: state} if not_taken else {taken: state}
    flat = {key: value for name, one in both.items() for key, value in prefixed(one, f"module.{name}.").items()}
    torch.save(flat if as_prefix else {**both, "epoch": 3}, tmp_path / "w.pth")
    assert same_features(load(tmp_path / "w.pth", allow_unused=["module.*"]), model)


def test_a_tensor_with_and_without_its_wrapper(tmp_path):
    state = original().state_dict()
    twice = {**state, "_orig_mod.blocks.0.norm1.weight": state["blocks.0.norm1.weight"] + 1}
    save_file(twice, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"has '_orig_mod.blocks.0.norm1.weight' and 'blocks.0.norm1.weight', which is"):
        load(tmp_path / "w.safetensors")


def test_two_encoders_in_entries_that_nobody_knows(tmp_path):
    state = original().state_dict()
    torch.save({"left": state, "right": {"deep": noise(state)}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds several image encoders \('left\.\*', 'right\.deep\.\*'\)"):
        load(tmp_path / "w.pth")


LAYOUTS = [
    dict,
    mae,
    dino,
    dino_side_by_side,
    moco_v3,
    open_clip,
    compiled_and_parallel,
    wrapped_inside,
    optimizer_by_name,
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_others(layout, tmp_path):
    model = original()
    torch.save(layout(model.state_dict()), tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth")
    assert same_features(loaded, model)
    assert loaded.head.out_features == 4


def openai_clip(model):
    """The names of OpenAI, by hand: timm's remapping backwards."""
    renamed = {}
    for key, value in model.state_dict().items():
        block = re.match(r"blocks\.(\d+)\.(.*)", key)
        if key == "cls_token":
            key, value = "class_embedding", value[0, 0]
        elif key == "pos_embed":
            key, value = "positional_embedding", value[0]
        elif block:
            inner = block[2].replace("norm1", "ln_1").replace("norm2", "ln_2").replace("attn.proj", "attn.out_proj")
            inner = (
                inner.replace("attn.qkv.", "attn.in_proj_")
                .replace("mlp.fc1", "mlp.c_fc")
                .replace("mlp.fc2", "mlp.c_proj")
            )
            key = f"transformer.resblocks.{block[1]}.{inner}"
        else:
            layer, _, name = key.rpartition(".")
            key = {"norm_pre": "ln_pre", "norm": "ln_post", "patch_embed.proj": "conv1"}[layer] + f".{name}"
        renamed[f"visual.{key}"] = value.clone()
    return {**renamed, "visual.proj": torch.ones(48, 5), **text_tower()}


def test_the_image_tower_of_openai_clip(tmp_path):
    model = original("vit_base_patch16_clip_quickgelu_224", classes=0)
    state = openai_clip(model)
    save_file(state, tmp_path / "w.safetensors")
    assert same_features(load(tmp_path / "w.safetensors", "vit_base_patch16_clip_quickgelu_224"), model)
    # As it was published, in half precision.
    torch.save({key: value.half() for key, value in state.items()}, tmp_path / "half.pt")
    loaded = load(tmp_path / "half.pt", "vit_base_patch16_clip_quickgelu_224")
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert same_features(loaded, model, atol=0.05)
    assert not same_features(loaded, model)


def test_dinov2_with_registers(tmp_path):
    model = original("vit_small_patch14_reg4_dinov2", classes=0, init_values=0.5)
    state = dict(model.state_dict())
    # Theirs has a position for the class token too, which timm adds to it.
    place = torch.full((1, 1, 48), 0.25)
    state["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - place
    state["register_tokens"] = state.pop("reg_token")
    torch.save({**state, "mask_token": torch.zeros(1, 48)}, tmp_path / "w.pth")
    assert same_features(load(tmp_path / "w.pth", "vit_small_patch14_reg4_dinov2", init_values=0.5), model, atol=1e-5)


def augreg(model):
    """The arrays of Google's ``.npz`` that timm's loader makes `model` of."""
    heads, arrays = model.blocks[0].attn.num_heads, {}

    def put(name, weight, *shape):
        arrays[name] = weight.detach().reshape(shape or weight.shape).numpy()

    put("cls", model.cls_token)
    put("Transformer/posembed_input/pos_embedding", model.pos_embed)
    put("embedding/kernel", model.patch_embed.proj.weight.permute(2, 3, 1, 0))
    put("embedding/bias", model.patch_embed.proj.bias)
    put("Transformer/encoder_norm/scale", model.norm.weight)
    put("Transformer/encoder_norm/bias", model.norm.bias)
    put("head/kernel", model.head.weight.T)
    put("head/bias", model.head.bias)
    for index, block in enumerate(model.blocks):
        at = f"Transformer/encoderblock_{index}"
        for name, norm in (("LayerNorm_0", block.norm1), ("LayerNorm_2", block.norm2)):
            put(f"{at}/{name}/scale", norm.weight)
            put(f"{at}/{name}/bias", norm.bias)
        attention = f"{at}/MultiHeadDotProductAttention_1"
        parts = zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
        for name, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
            put(f"{attention}/{name}/kernel", weight.T, 48, heads, -1)
            put(f"{attention}/{name}/bias", bias, heads, -1)
        put(f"{attention}/out/kernel", block.attn.proj.weight.T, heads, -1, 48)
        put(f"{attention}/out/bias", block.attn.proj.bias)
        for number, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            put(f"{at}/MlpBlock_3/Dense_{number}/kernel", layer.weight.T)
            put(f"{at}/MlpBlock_3/Dense_{number}/bias", layer.bias)
    return arrays


def test_augreg_npz(tmp_path):
    model = original()
    arrays = augreg(model)
    np.savez(tmp_path / "w.npz", **arrays)
    loaded = load(tmp_path / "w.npz")
    assert same_features(loaded, model)
    assert loaded.head.weight.shape == (4, 48)
    assert not torch.equal(loaded.head.weight, model.head.weight[:4])
    for patch_size, same in ((8, True), (16, False)):  # a kernel of another size is resampled
        other = original(patch_size=patch_size, image_size=4 * patch_size)
        backbone = Backbone(name=PLAIN, image_size=4 * patch_size, sha256="0" * 64)
        assert load_weights(other, tmp_path / "w.npz", backbone, "head").same_patches == same
    # Its loader, asked for fewer blocks, leaves the others unread, and stretches an array that is too short.
    with pytest.raises(
        UserError, match=r"left over 16 tensors \(Transformer/encoderblock_1/LayerNorm_0/scale, .* and 4 more"
    ):
        load(tmp_path / "w.npz", depth=1)
    load(tmp_path / "w.npz", depth=1, allow_unused=["Transformer/encoderblock_1/*"])
    with pytest.raises(UserError, match="array 'Transformer/encoderblock_2/LayerNorm_0/scale' is missing"):
        load(tmp_path / "w.npz", depth=3)
    np.savez(tmp_path / "short.npz", **{**arrays, "Transformer/encoder_norm/bias": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=r"'norm.bias' would have shape \(1,\), but the backbone's has \(48,\)"):
        load(tmp_path / "short.npz")
    np.savez(tmp_path / "nan.npz", **{**arrays, "Transformer/encoder_norm/bias": np.full(48, np.nan, np.float32)})
    with pytest.raises(UserError, match=r"'norm\.bias' has values that are not finite"):
        load(tmp_path / "nan.npz")
    np.savez(tmp_path / "object.npz", **{**arrays, "cls": np.array([print], dtype=object)})
    with pytest.raises(
        UserError, match=r"cannot be read as .npz \(Object arrays cannot be loaded when allow_pickle=False"
    ):
        load(tmp_path / "object.npz")
