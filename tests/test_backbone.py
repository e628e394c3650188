"""Weights files of every kind: what loads, to the same features as the model it was made from, and what is refused."""

import argparse
import http.server
import os
import re
import threading

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pt_peft.backbone import create_backbone, weights_file
from pt_peft.errors import UserError
from pt_peft.experiment import Backbone
from pt_peft.files import sha256_of
from pt_peft.site import Site

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
PLAIN = "vit_tiny_patch16_224"
SIZE = 32


def original(name=PLAIN, classes=7, image_size=SIZE, **kwargs):
    """A random model of which nothing is at its start: norms too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = timm.create_model(name, num_classes=classes, img_size=image_size, **{**SMALL, **kwargs}).eval()
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
    teacher = {**prefixed(state, "backbone."), "head.mlp.0.weight": torch.ones(3), "head.last_layer.weight_v": torch.ones(3)}
    return {"student": prefixed(noise(state), "module.backbone."), "teacher": teacher, "args": argparse.Namespace(arch="vit")}


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


@pytest.mark.parametrize("layout", [dict, mae, dino, dino_side_by_side, moco_v3, open_clip, compiled_and_parallel])
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
            inner = inner.replace("attn.qkv.", "attn.in_proj_").replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
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
    assert same_features(loaded, model, atol=0.05) and not same_features(loaded, model)


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
    assert loaded.head.weight.shape == (4, 48) and not torch.equal(loaded.head.weight, model.head.weight[:4])
    # Its loader, asked for fewer blocks, leaves the others unread, and stretches an array that is too short.
    with pytest.raises(UserError, match=r"left over 16 tensors \(Transformer/encoderblock_1/LayerNorm_0/scale, .* and 4 more"):
        load(tmp_path / "w.npz", depth=1)
    load(tmp_path / "w.npz", depth=1, allow_unused=["Transformer/encoderblock_1/*"])
    with pytest.raises(UserError, match="array 'Transformer/encoderblock_2/LayerNorm_0/scale' is missing"):
        load(tmp_path / "w.npz", depth=3)
    np.savez(tmp_path / "short.npz", **{**arrays, "Transformer/encoder_norm/bias": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match=r"'norm.bias' would have shape \(1,\), but the backbone's has \(48,\)"):
        load(tmp_path / "short.npz")
    np.savez(tmp_path / "nan.npz", **{**arrays, "Transformer/encoder_norm/bias": np.full(48, np.nan, np.float32)})
    with pytest.raises(UserError, match="'norm.bias' has values that are not finite"):
        load(tmp_path / "nan.npz")
    np.savez(tmp_path / "object.npz", **{**arrays, "cls": np.array([print], dtype=object)})
    with pytest.raises(UserError, match=r"cannot be read as .npz \(Object arrays cannot be loaded when allow_pickle=False"):
        load(tmp_path / "object.npz")


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
    del state["blocks.1.norm2.bias"], state["norm.weight"]
    neck = {f"neck.{index}": torch.ones(3) for index in range(20)}
    state = {**prefixed(state, "backbone."), **neck, "backbone.extra": torch.ones(3)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "w.pth")
    message = str(caught.value)
    assert "missing 2 tensors (blocks.1.norm2.bias, norm.weight);" in message
    assert "left over 21 tensors (neck.0, neck.1," in message and "neck.11 and 9 more)" in message
    assert "backbone.allow_missing and backbone.allow_unused" in message
    with pytest.raises(UserError, match=r"fit the backbone vit_tiny_patch16_224; left over 1 tensor \(backbone.extra\)\. "):
        load(tmp_path / "w.pth", allow_missing=["*norm*.*"], allow_unused=["neck.?", "neck.1?"])
    with pytest.raises(UserError, match=r"missing 1 tensor \(norm.weight\)\. .* field backbone.allow_missing"):
        load(tmp_path / "w.pth", allow_missing=["blocks.1.*"], allow_unused=["neck.*", "extra"])
    loaded = load(tmp_path / "w.pth", allow_missing=["*norm*.*"], allow_unused=["neck.*", "extra"]).state_dict()
    assert torch.equal(loaded["norm.weight"], torch.ones(48)) and torch.equal(loaded["norm.bias"], state["backbone.norm.bias"])


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.0.attn.qkv.weight", torch.zeros(48, 48), r"'x.blocks.0.attn.qkv.weight' has shape \(48, 48\), .* \(144, 48\)"),
        ("blocks.0.norm1.bias", torch.full((48,), torch.inf), "'x.blocks.0.norm1.bias' has values that are not finite"),
        ("norm.bias", torch.tensor([0.0] * 47 + [torch.nan]).half(), "'x.norm.bias' has values that are not finite"),
        ("norm.bias", torch.zeros(48, dtype=torch.int64), "'x.norm.bias' is torch.int64, but .* torch.float32"),
        ("blocks.0.norm1.bias", torch.zeros(48).to_sparse(), "'x.blocks.0.norm1.bias' is of another kind"),
        ("blocks.0.norm1.bias", torch.zeros(48, dtype=torch.complex64), "'x.blocks.0.norm1.bias' is of another kind"),
        ("pos_embed", torch.zeros(1, 6, 48), r"'x.pos_embed' has shape \(1, 6, 48\), but the backbone's has \(1, 17, 48\)"),
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
    with pytest.raises(UserError, match=r"code.pth: is not only tensors .* \(posix.mkdir\), .* could run code; .*safetensors"):
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
    with pytest.raises(UserError, match="w.onnx: ends in '.onnx'; .safetensors, .pth, .pt, .bin, .ckpt, .tar, .npz would"):
        load(tmp_path / "w.onnx")
    torch.save([1, 2], "list.pt")
    with pytest.raises(UserError, match="holds a list; tensors by name"):
        load(tmp_path / "list.pt")
    endless = {"epoch": 3}
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
    with pytest.raises(UserError, match="ViT-B-16.pt: is a TorchScript program, which is not run here; its state dict"):
        load(tmp_path / "ViT-B-16.pt")


def test_a_file_of_old_torch(tmp_path):
    model = original()
    torch.save(model.state_dict(), tmp_path / "w.pth.tar", _use_new_zipfile_serialization=False)
    assert same_features(load(tmp_path / "w.pth.tar"), model)


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


NAME = f"{PLAIN}.augreg_in21k_ft_in1k"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face as one download needs."""

    content = b""
    asked: list[str] = []

    def do_HEAD(self):
        self.asked.append(self.path)
        found = self.path == f"/timm/{NAME}/resolve/main/pytorch_model.bin"
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content)) if found else "0")
        self.send_header("ETag", '"1234"') if found else self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return found

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a file into a hub of its own, with an empty cache."""
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(Hub, "asked", [])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield lambda content: monkeypatch.setattr(Hub, "content", content)
    server.shutdown()
    server.server_close()


def test_published_weights_are_fetched_once(hub, tmp_path):
    model = original()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    hub((tmp_path / "w.pth").read_bytes())
    (tmp_path / "site.json").write_text(f'{{"backbone": "timm:{NAME}"}}')
    site = Site.read(tmp_path / "site.json")
    assert site.backbone == f"timm:{NAME}"
    path = weights_file(site)
    assert same_features(load(path), model) and sha256_of(path) == sha256_of(tmp_path / "w.pth")
    assert f"/timm/{NAME}/resolve/main/model.safetensors" in Hub.asked
    Hub.asked.clear()
    assert weights_file(site) == path and not Hub.asked


def test_published_weights_without_a_network(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=rf"'timm:{NAME}', which is not cached on this machine, and without a network"):
        weights_file(Site(backbone=f"timm:{NAME}"))


def test_unknown_published_weights():
    with pytest.raises(UserError, match=rf"'timm:{PLAIN}.none', but timm knows no weights of that name; timm:{NAME[:-9]}"):
        weights_file(Site(backbone=f"timm:{PLAIN}.none"))
    with pytest.raises(UserError, match="timm knows no architecture 'vit_none'"):
        weights_file(Site(backbone="timm:vit_none.mae"))
    with pytest.raises(UserError, match="'hf-hub:timm/vit', which does not exist"):
        weights_file(Site(backbone="hf-hub:timm/vit"))
