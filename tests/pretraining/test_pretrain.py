"""Continued pre-training: the masked autoencoder by its parts, and the command from the data to the file."""

import json
import math
from typing import cast

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from helpers import changed
from pt_peft.__main__ import main
from pt_peft.data.site_data import ImageSplit
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Backbone
from pt_peft.files import sha256_of
from pt_peft.model.backbone import create_backbone
from pt_peft.model.vit import ViT
from pt_peft.pretraining import central
from pt_peft.pretraining.mae import MaskedAutoencoder, sine_cosine_positions
from pt_peft.schema import parse

SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SIZE, PATCHES = 32, 16


def autoencoder(name="vit_tiny_patch16_224", mask_ratio=0.75, size=SIZE, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = timm.create_model(name, img_size=size, num_classes=3, **{**SMALL, **kwargs})
        return MaskedAutoencoder(cast(ViT, encoder), mask_ratio).eval()


def pictures(count=2, size=SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


ARCHITECTURES = {
    "augreg": ("vit_tiny_patch16_224", {}),
    "average pooling": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "clip, norm before the blocks": ("vit_base_patch16_clip_224", {}),
    "dinov2, register tokens": ("vit_small_patch14_reg4_dinov2", {"init_values": 0.5}),
    "siglip, no class token": ("vit_base_patch16_siglip_224", {}),
    "deit3": ("deit3_small_patch16_224", {"init_values": 0.5}),
    "any size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_encoder_is_the_backbone_on_the_patches_it_sees(architecture):
    name, kwargs = ARCHITECTURES[architecture]
    model = autoencoder(name, **kwargs)
    encoder, prefix = model.encoder, model.encoder.num_prefix_tokens
    images = pictures()
    every = torch.arange(PATCHES).expand(2, -1)
    with torch.no_grad():
        whole = encoder.fc_norm(encoder.forward_features(images))
        assert torch.allclose(model.encode(images, every), whole, atol=1e-5)
        assert torch.allclose(model.encode(images, every.flip(1))[:, prefix:], whole[:, prefix:].flip(1), atol=1e-5)
    seen_by_blocks = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen_by_blocks.append(inputs[0].shape[1]))
    loss = model(images, torch.rand(2, PATCHES))
    assert seen_by_blocks == [prefix + PATCHES // 4]
    loss.backward()
    unused = {"head", "attn_pool"}
    without = {key for key, value in model.named_parameters() if value.grad is None}
    assert all(key.split(".")[:2] in (["encoder", part] for part in unused) for key in without)


def test_what_is_hidden_cannot_be_seen():
    model, images = autoencoder(), pictures()
    order = torch.rand(2, PATCHES).argsort(1)
    changed_images = model.patchify(images)
    other = images.clone()
    for image, places in zip(other, order, strict=True):
        for place in places[model.kept :].tolist():
            row, column = 8 * (place // 4), 8 * (place % 4)
            image[:, row : row + 8, column : column + 8] = 9.0
    assert not torch.equal(changed_images, model.patchify(other))
    with torch.no_grad():
        seen = order[:, : model.kept]
        assert torch.equal(model.encode(images, seen), model.encode(other, seen))
        assert not torch.equal(
            model.encode(images, order[:, -model.kept :]), model.encode(other, order[:, -model.kept :])
        )


def test_the_loss_is_of_hidden_patches_alone_normalised():
    """Zeros for the hidden patches have the targets' mean square as their loss, (n - 1) / n; others do not count."""
    model, images = autoencoder(), pictures() * 3 + 5
    noise = torch.rand(2, PATCHES)
    seen = noise.argsort(1)[:, : model.kept]

    def decode(tokens, order):
        told = torch.zeros(2, PATCHES, 192)
        return told.scatter(1, seen[:, :, None].expand(-1, -1, 192), 100.0)

    model.decode = decode
    assert model(images, noise).item() == pytest.approx(191 / 192, abs=1e-4)


def test_the_decoder_puts_tokens_into_their_places():
    """Without blocks, a patch's prediction depends on its own token and place alone."""
    model = autoencoder()
    model.blocks = torch.nn.Sequential()
    tokens = torch.randn(1, 1 + model.kept, 48)
    order = torch.rand(1, PATCHES).argsort(1)
    with torch.no_grad():
        told = model.decode(tokens, order)
        for index, place in enumerate(order[0, : model.kept].tolist()):
            alone = model.predict(model.norm(model.embed(tokens[0, 1 + index]) + model.positions[1 + place]))
            assert torch.allclose(told[0, place], alone, atol=1e-5)
        for place in order[0, model.kept :].tolist():
            alone = model.predict(model.norm(model.mask_token[0, 0] + model.positions[1 + place]))
            assert torch.allclose(told[0, place], alone, atol=1e-5)


def test_patches_are_in_the_order_of_the_tokens():
    model = autoencoder(size=36)  # four pixels at the border are in no patch
    images = pictures(size=36)
    patches = model.patchify(images).unflatten(2, (8, 8, 3)).permute(0, 1, 4, 2, 3)
    projection = model.encoder.patch_embed.proj
    with torch.no_grad():
        tokens = torch.einsum("blchw,dchw->bld", patches, projection.weight) + projection.bias
        assert torch.allclose(tokens, projection(images).flatten(2).mT, atol=1e-5)


def test_positions():
    found = sine_cosine_positions(4, 6, 64)
    assert found.shape == (24, 64)
    assert found.abs().max() <= 1
    assert torch.cdist(found, found).add(torch.eye(24)).min() > 0.1  # no two places alike
    # The first pair of the row's half turns by one radian a row; a step along a row leaves it.
    assert found[6 * 2, [0, 16]].tolist() == pytest.approx([math.sin(2), math.cos(2)])
    assert torch.equal(found[0, :32], found[1, :32])
    assert not torch.equal(found[0, 32:], found[1, 32:])


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("eva02_tiny_patch14_224", SMALL, "is a Eva of timm, whose blocks cannot be given some of the patches alone"),
        ("vit_tiny_r_s16_p8_224", {}, "makes its patches by HybridEmbed"),
    ],
)
def test_backbones_that_cannot_be_masked(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        MaskedAutoencoder(cast(ViT, timm.create_model(name, num_classes=3, **kwargs)), 0.75)
    with pytest.raises(UserError, match=r"--mask-ratio is 0\.99, which leaves 0 of 16 patches to see"):
        autoencoder(mask_ratio=0.99)


@pytest.fixture
def files(tiny, tiny_weights, tmp_path):
    """experiment.json and site.json, and a function that runs the command on them."""
    experiment = changed(
        tiny, data={"images_per_site": {"train": 64}}, training={"head_learning_rate": 1e-2, "warmup_rounds": 2.0}
    )
    (tmp_path / "experiment.json").write_text(experiment.to_json())
    (tmp_path / "site.json").write_text(json.dumps({"backbone": str(tiny_weights), "threads": 1}))

    def run(objective, out, *options):
        given = [str(tmp_path / "experiment.json"), "--site", str(tmp_path / "site.json"), "--objective", objective]
        return main(["pretrain", *given, "--out", str(out), *options])

    return run


@pytest.mark.parametrize("objective", ["supervised", "mae"])
def test_the_command(objective, files, tiny, tiny_weights, tmp_path, capsys):
    before = sha256_of(tiny_weights)
    out = tmp_path / "w.safetensors"
    assert files(objective, out, "--epochs", "6", "--batch-size", "16", "--learning-rate", "2e-3") == 0
    assert "6 epochs over 64 images, loss " in capsys.readouterr().out
    described = json.loads((tmp_path / "w.safetensors.json").read_text())
    told = described["provenance"]
    assert len(told["loss"]) == 6
    assert told["loss"][-1] < 0.97 * told["loss"][0]
    assert told["source_sha256"] == before == sha256_of(tiny_weights)
    assert told["objective"] == objective
    assert told["images"] == 64
    assert ("mask_ratio" in told) == (objective == "mae")
    backbone = parse(Backbone, described["backbone"], "w.safetensors.json")
    assert backbone.sha256 == sha256_of(out)
    assert backbone.image_size == tiny.backbone.image_size
    # Strictly the backbone, all of it trained.
    state, source = load_file(out), load_file(tiny_weights)
    assert state.keys() == source.keys()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert all(not torch.equal(value, source[key]) for key, value in state.items())
    loaded = create_backbone(backbone, 4, out).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    # The same again gives the same file; what is there is not touched.
    again = tmp_path / "again.safetensors"
    assert files(objective, again, "--epochs", "6", "--batch-size", "16", "--learning-rate", "2e-3") == 0
    assert sha256_of(again) == backbone.sha256
    assert files(objective, out, "--epochs", "1") == 1
    assert f"--out: {out} exists already" in capsys.readouterr().err
    assert sha256_of(out) == backbone.sha256


def test_what_goes_wrong_leaves_nothing(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out" / "w.safetensors"
    out.parent.mkdir()
    for options, message in (
        (("--epochs", "0"), "--epochs is 0; 1 to 100000 would be right"),
        (("--epochs", "1", "--batch-size", "0"), "--batch-size is 0;"),
        (("--epochs", "1", "--learning-rate", "nan"), "--learning-rate is nan;"),
        (("--epochs", "1", "--mask-ratio", "1"), "--mask-ratio is 1.0;"),
    ):
        assert files("mae" if "ratio" in message else "supervised", out, *options) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert files("mae", out.with_suffix(".pth"), "--epochs", "1") == 1
    assert files("mae", out.parent / "none" / out.name, "--epochs", "1") == 1

    def diverging(experiment, recipe, weights, split, device, on_step):
        on_step(torch.tensor(torch.nan))

    monkeypatch.setitem(central.OBJECTIVES, "mae", diverging)
    assert files("mae", out, "--epochs", "1", "--batch-size", "64") == 1
    assert "the training loss of epoch 1 is nan; a smaller --learning-rate" in capsys.readouterr().err
    monkeypatch.undo()

    def interrupted(path, content):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        path.write_bytes(content)

    monkeypatch.setattr(central, "write_atomically", interrupted)
    assert files("mae", out, "--epochs", "1") == 130
    assert not list(out.parent.iterdir())


def test_other_weights_than_the_experiments_are_refused(files, tmp_path, capsys):
    (tmp_path / "site.json").write_text("{}")
    assert files("mae", tmp_path / "w.safetensors", "--epochs", "1") == 1
    assert "every site must start from the same weights" in capsys.readouterr().err


def test_the_data_digest():
    images, labels = np.zeros((3, 3, 4, 4), np.uint8), np.arange(3)
    other = images.copy()
    other[2, 0, 0, 0] = 1
    splits = [ImageSplit(images, labels), ImageSplit(other, labels), ImageSplit(images, labels[::-1])]
    assert len({central.data_digest(split) for split in splits}) == 3
