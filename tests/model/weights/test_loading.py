"""Weights files: what they load to, and what is refused."""

import argparse
import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from random_models import PLAIN, SIZE, SMALL, load, original, prefixed, same_features
from safetensors.torch import load_file, save_file

from pt_peft.errors import UserError
from pt_peft.files import sha256_of
from pt_peft.model.weights.formats import read_file


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (PLAIN, {}),
        ("vit_base_patch16_clip_224", {}),
        ("flexivit_small", {}),
        ("deit3_small_patch16_224", {"init_values": 0.5}),
        ("vit_small_patch14_dinov2", {"init_values": 0.5}),
        ("vit_base_patch16_siglip_224", {}),
        ("eva02_tiny_patch14_224", {}),
    ],
)
def test_other_image_and_patch_sizes_as_timm_does_it(name, kwargs, tmp_path):
    """Position and patch embeddings resampled to the very values that timm's own loading gives."""
    state = original(name, image_size=96, patch_size=16, **kwargs).state_dict()
    if name.startswith("deit3"):  # its authors' names
        state = {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): value for key, value in state.items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth", name, **kwargs).state_dict()
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "w.pth")}}
    theirs = timm.create_model(name, num_classes=4, img_size=SIZE, **overlay, **{**SMALL, **kwargs}).state_dict()
    assert loaded.keys() == theirs.keys()
    assert all(torch.equal(loaded[key], theirs[key]) for key in loaded if not key.startswith("head."))


def test_missing_and_left_over_by_name(tmp_path):
    state = dict(original().state_dict())
    del state["norm.bias"], state["norm.weight"]
    neck = {f"neck.{index}": torch.ones(3) for index in range(20)}
    state = {**prefixed(state, "backbone."), **neck, "backbone.extra": torch.ones(3)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "w.pth")
    message = str(caught.value)
    assert "missing 2 tensors (norm.weight, norm.bias);" in message
    assert "left over 21 tensors (neck.0, neck.1," in message
    assert "neck.11 and 9 more)" in message
    assert "backbone.allow_missing and backbone.allow_unused" in message
    with pytest.raises(
        UserError, match=r"fit the backbone vit_tiny_patch16_224; left over 1 tensor \(backbone.extra\)\. "
    ):
        load(tmp_path / "w.pth", allow_missing=["*norm*.*"], allow_unused=["neck.?", "neck.1?"])
    with pytest.raises(UserError, match=r"missing 1 tensor \(norm.weight\)\. .* field backbone.allow_missing"):
        load(tmp_path / "w.pth", allow_missing=["*.bias"], allow_unused=["neck.*", "extra"])
    loaded = load(tmp_path / "w.pth", allow_missing=["*norm*.*"], allow_unused=["neck.*", "extra"]).state_dict()
    assert torch.equal(loaded["norm.weight"], torch.ones(48))
    assert torch.equal(loaded["blocks.1.norm2.bias"], state["backbone.blocks.1.norm2.bias"])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("norm.weight", r"missing 42 tensors \(cls_token, pos_embed, "),
        (
            "(?!blocks.1.norm2.bias)",
            r"missing 1 tensor \(blocks.1.norm2.bias\)\. Weights of that backbone would be right:",
        ),
        ("(?!patch_embed.proj.weight)", r"missing 1 tensor \(patch_embed.proj.weight\)"),
        ("(?!attn_pool|norm)", r"missing 15 tensors \(norm.weight, .* of all parameters at least 90%"),
    ],
)
def test_no_pattern_allows_random_weights(kept, message, suffix, tmp_path):
    """Nothing of the blocks or the patch embedding is drawn from the seed, nor more than a tenth of the parameters."""
    state = {key: value for key, value in original(global_pool="map").state_dict().items() if re.match(kept, key)}
    path = tmp_path / f"w.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    for allowed in ([], ["*"]):
        with pytest.raises(UserError, match=message) as caught:
            load(path, allow_missing=allowed, allow_unused=["*"], global_pool="map")
        assert "patterns of these names" not in str(caught.value)
    save_file(original(global_pool="map", depth=12).state_dict(), path := tmp_path / "deep.safetensors")
    state = {key: value for key, value in load_file(path).items() if not key.startswith("attn_pool")}
    save_file(state, path)  # a twelfth of it
    load(path, allow_missing=["attn_pool.*"], global_pool="map", depth=12)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "blocks.0.attn.qkv.weight",
            torch.zeros(48, 48),
            r"'x.blocks.0.attn.qkv.weight' has shape \(48, 48\), .* \(144, 48\)",
        ),
        ("blocks.0.norm1.bias", torch.full((48,), torch.inf), "'x.blocks.0.norm1.bias' has values that are not finite"),
        ("norm.bias", torch.tensor([0.0] * 47 + [torch.nan]).half(), "'x.norm.bias' has values that are not finite"),
        ("norm.bias", torch.zeros(48, dtype=torch.int64), "'x.norm.bias' is torch.int64, but .* torch.float32"),
        ("blocks.0.norm1.bias", torch.zeros(48).to_sparse(), "'x.blocks.0.norm1.bias' is of another kind"),
        ("blocks.0.norm1.bias", torch.zeros(48, dtype=torch.complex64), "'x.blocks.0.norm1.bias' is of another kind"),
        (
            "pos_embed",
            torch.zeros(1, 6, 48),
            r"'x.pos_embed' has shape \(1, 6, 48\), but the backbone's has \(1, 17, 48\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(name, value, message, tmp_path):
    state = {**original().state_dict(), name: value}
    torch.save(prefixed(state, "x."), tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "w.pth")


def test_another_architecture(tmp_path):
    save_file(original().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"tensor '\S+' has shape .*48.*, but the backbone's has .*96"):
        load(tmp_path / "w.safetensors", embed_dim=96)
    with pytest.raises(UserError, match=r"missing 12 tensors \(blocks.2.norm1.weight, "):
        load(tmp_path / "w.safetensors", depth=3)
    with pytest.raises(UserError, match=r"left over 12 tensors \(blocks.1.attn.proj.bias, "):
        load(tmp_path / "w.safetensors", depth=1)


def test_two_names_for_one_tensor_do_not_stay_tied(tmp_path):
    state = original().state_dict()
    state["blocks.1.norm1.bias"] = state["blocks.0.norm1.bias"]
    torch.save(state, tmp_path / "w.pth")
    loaded = load(tmp_path / "w.pth")
    with torch.no_grad():
        loaded.blocks[0].norm1.bias.add_(1)
    assert torch.equal(loaded.blocks[1].norm1.bias, state["blocks.0.norm1.bias"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_files_that_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = original().state_dict()
    torch.save({"model": state, "hyper_parameters": Evil()}, "code.pth")
    with pytest.raises(
        UserError, match=r"code.pth: is not only tensors .* \(posix.mkdir\), .* could run code; .*safetensors"
    ):
        load(tmp_path / "code.pth")
    torch.save({"model": state, "hyper_parameters": Evil()}, "old.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="could run code"):
        load(tmp_path / "old.bin")
    assert not (tmp_path / "evil").exists()
    (tmp_path / "junk.pth").write_bytes(b"hello, world" * 100)
    (tmp_path / "half.pth").write_bytes((tmp_path / "code.pth").read_bytes()[:20_000])
    (tmp_path / "junk.safetensors").write_bytes(b"hello, world" * 100)
    (tmp_path / "junk.npz").write_bytes(b"hello, world" * 100)
    for name in ("junk.pth", "half.pth", "junk.safetensors", "junk.npz"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as "):
            load(tmp_path / name)
    (tmp_path / "w.onnx").touch()
    with pytest.raises(
        UserError, match=r"w\.onnx: ends in '\.onnx'; \.safetensors, \.pth, \.pt, \.bin, \.ckpt, \.tar, \.npz would"
    ):
        load(tmp_path / "w.onnx")
    torch.save([1, 2], "list.pt")
    with pytest.raises(UserError, match="holds a list; tensors by name"):
        load(tmp_path / "list.pt")
    endless: dict[str, object] = {"epoch": 3}
    endless["model"] = endless
    torch.save(endless, "endless.pt")
    with pytest.raises(UserError, match="holds no tensors by name, but 'epoch', 'model'"):
        load(tmp_path / "endless.pt")
    torch.save({**prefixed(state, "left."), **prefixed(state, "right.")}, "two.pt")
    with pytest.raises(UserError, match=r"holds several image encoders \('left\.\*', 'right\.\*'\)"):
        load(tmp_path / "two.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_program_is_not_run(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "ViT-B-16.pt")
    with pytest.raises(
        UserError, match=r"ViT-B-16\.pt: is a TorchScript program, which is not run here; its state dict"
    ):
        load(tmp_path / "ViT-B-16.pt")


def test_a_file_of_old_torch(tmp_path):
    model = original()
    torch.save(model.state_dict(), tmp_path / "w.pth.tar", _use_new_zipfile_serialization=False)
    assert same_features(load(tmp_path / "w.pth.tar"), model)


@pytest.mark.parametrize("old", [False, True])
def test_records_beside_the_weights_are_not_run(old, tmp_path):
    """Arguments, paths and numpy's metrics, which are no reason to refuse a file: nothing is made of them."""
    model = original()
    beside = {
        "best_auroc": np.float64(0.9),
        "epoch": np.int64(3),
        "confusion": np.arange(4.0),
        "args": argparse.Namespace(output_dir=Path("runs/1")),
    }
    path = tmp_path / "w.pth"
    torch.save({**beside, "model": model.state_dict()}, path, _use_new_zipfile_serialization=not old)
    assert same_features(load(path), model)
    content = read_file(path)
    assert {type(content[name]).__name__ for name in beside} == {"_Ignored"}


@pytest.mark.parametrize("name", ["w.SAFETENSORS", "w.Pth", "w.PTH.TAR", "w.BIN"])
def test_suffixes_in_any_case(name, tmp_path):
    model = original()
    path = tmp_path / name
    save_file(model.state_dict(), path) if "SAFE" in name else torch.save(model.state_dict(), path)
    assert same_features(load(path), model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_training_does_not_write_the_file(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    state = original().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    before = sha256_of(path)
    loaded = load(path)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded(torch.randn(2, 3, SIZE, SIZE)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(loaded.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
    assert sha256_of(path) == before
    assert torch.equal(load(path).blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])
