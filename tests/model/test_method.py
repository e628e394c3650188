"""The registry, and each of the paper's methods against an independent account of it."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch

from helpers import ROOT, changed
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Backbone, Method, ModelSpec
from pt_peft.methods.sba import Sba, drawn_blocks
from pt_peft.model.adapted_model import build_model
from pt_peft.model.backbone import create_backbone
from pt_peft.model.method import Hybrid, components, get_method, method_names, register

WIDTHS = {"vit_base_patch16_224": 768, "vit_small_patch16_224": 384, "vit_tiny_patch16_224": 192}


def counts(d: int) -> dict[str, int]:
    """The design's table for a ViT/16 of 12 blocks of width d at 224 pixels, counted by hand from the architecture."""
    blocks, tokens = 12, 197
    attention = d * 3 * d + 3 * d + d * d + d
    mlp = d * 4 * d + 4 * d + 4 * d * d + d
    embedding = 3 * 16 * 16 * d + d + d + tokens * d
    lora, prompts = blocks * 4 * (d + 3 * d), blocks * 10 * d
    return {
        "full": embedding + blocks * (attention + mlp + 4 * d) + 2 * d,
        "linear_probe": 0,
        "bitfit": d + blocks * (3 * d + d + 4 * d + d + 2 * d) + d,
        "norm": blocks * 4 * d + 2 * d,
        "vpt_shallow": 10 * d,
        "vpt_deep": prompts,
        "dvpt": blocks * 2 * (10 + d),
        "sba": attention,
        "lora": lora,
        "lora_vpt": lora + prompts,
    }


@pytest.fixture(scope="module", params=WIDTHS)
def backbone(request):
    return Backbone(name=request.param, image_size=224, sha256="0" * 64)


def of(backbone: Backbone, method: str, **options) -> ModelSpec:
    return ModelSpec(seed=0, backbone=backbone, classes=("a", "b"), method=Method(name=method, options=options))


def exchanged_in_a_round(spec: ModelSpec) -> dict[str, int]:
    return {key: value.size for key, value in build_model(spec, None).exchange(1).trained(0).items()}


def test_exchanged_parameters(backbone):
    expected = counts(WIDTHS[backbone.name])
    if backbone.name == "vit_base_patch16_224":
        assert expected == {
            "full": 85_798_656,
            "linear_probe": 0,
            "bitfit": 102_912,
            "norm": 38_400,
            "vpt_shallow": 7_680,
            "vpt_deep": 92_160,
            "dvpt": 12 * 2 * (10 + 768),
            "sba": 2_362_368,
            "lora": 147_456,
            "lora_vpt": 147_456 + 92_160,
        }
    for method, count in expected.items():
        sizes = exchanged_in_a_round(of(backbone, method))
        assert sizes.pop("head.weight") == 2 * WIDTHS[backbone.name]
        assert sizes.pop("head.bias") == 2
        assert sum(sizes.values()) == count, method


def test_the_jobs_are_the_papers_ten():
    assert {name for name in method_names() if get_method(name).job} == counts(1).keys()


def test_composition_by_name(tiny):
    both = exchanged_in_a_round(changed(tiny, method={"name": "dvpt+bitfit", "options": {}}).model)
    parts = [
        exchanged_in_a_round(changed(tiny, method={"name": name, "options": {}}).model) for name in ("dvpt", "bitfit")
    ]
    assert both == {**parts[0], **parts[1]}
    hybrid = changed(tiny, method={"name": "lora_vpt", "options": {}}).model
    joined = changed(tiny, method={"name": "lora+vpt_deep", "options": {}}).model
    first, second = build_model(hybrid, None).state(), build_model(joined, None).state()
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.fixture
def plain(tiny, tiny_weights):
    """A function that gives a plain timm model with the backbone of `tiny` and the head of another model."""

    def make(model):
        made = create_backbone(tiny.backbone, 4, tiny_weights).eval()
        made.head.load_state_dict({name: model.module.head.get_parameter(name) for name in ("weight", "bias")})
        return made

    return make


def prompted(plain, images, prompts, deep):
    """VPT as its paper writes it, with timm's blocks, of which the last have prompts if these are fewer."""
    batch = images.shape[0]
    x = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(images))))
    without = len(plain.blocks) - len(prompts) if deep else 0
    for block in plain.blocks[:without]:
        x = block(x)
    x_class, z, x_patches = x[:, :1], prompts[0].expand(batch, -1, -1), x[:, 1:]
    for index, block in enumerate(plain.blocks[without:]):
        if deep:
            z = prompts[index].expand(batch, -1, -1)
        x = block(torch.cat([x_class, z, x_patches], dim=1))
        count = z.shape[1]
        x_class, z, x_patches = x[:, :1], x[:, 1 : 1 + count], x[:, 1 + count :]
    return plain.forward_head(plain.norm(torch.cat([x_class, x_patches], dim=1)))


@pytest.mark.parametrize(
    ("name", "options", "blocks"),
    [
        ("vpt_shallow", {}, [0]),
        ("vpt_deep", {}, [0, 1]),
        ("vpt_deep", {"last_blocks": 1}, [1]),
        ("dvpt", {}, [0, 1]),
        ("dvpt", {"last_blocks": 1}, [1]),
    ],
)
def test_prompts_against_a_plain_loop(name, options, blocks, tiny, tiny_weights, plain):
    method = {"name": name, "options": {name: {"num_prompts": 5, **options}}}
    model = build_model(changed(tiny, method=method).model, tiny_weights)
    state = {key: torch.from_numpy(value) for key, value in model.state().items()}
    assert {key.split(".")[1] for key in state if "prompts" in key} == {str(index) for index in blocks}
    if name == "dvpt":
        prompts = [state[f"blocks.{index}.prompts_A"] @ state[f"blocks.{index}.prompts_B"] for index in blocks]
    else:
        prompts = [state[f"blocks.{index}.prompts"] for index in blocks]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = prompted(plain(model), images, prompts, deep=name != "vpt_shallow")
        assert torch.allclose(model.module.eval()(images), expected, atol=1e-6)


def filled(model, scale=0.1):
    """Random values in every trained tensor; returns them."""
    generator = np.random.default_rng(1)
    state = {
        key: generator.normal(size=value.shape, scale=scale).astype(np.float32) for key, value in model.state().items()
    }
    model.load(state)
    return {key: torch.from_numpy(value) for key, value in state.items()}


def test_lora_against_its_equation(tiny, tiny_weights, plain):
    method = {"name": "lora", "options": {"lora": {"rank": 3, "alpha": 6.0}}}
    model = build_model(changed(tiny, method=method).model, tiny_weights)
    state = filled(model)
    expected = plain(model)
    with torch.no_grad():
        for index, block in enumerate(expected.blocks):
            a, b = (state[f"blocks.{index}.attn.qkv.lora_{side}"] for side in "AB")
            assert a.shape == (3, 32)
            assert b.shape == (96, 3)
            block.attn.qkv.weight += 2.0 * b @ a
        images = torch.randn(2, 3, 32, 32)
        assert torch.allclose(model.module.eval()(images), expected(images), atol=1e-5)


def test_lora_on_vit_base_equals_hf_pefts_own():
    """The same tensors in a model that `peft.get_peft_model` made of a plain timm ViT-B."""
    import peft

    spec = of(Backbone(name="vit_base_patch16_224", image_size=224, sha256="0" * 64), "lora")
    model = build_model(spec, None)
    theirs = timm.create_model("vit_base_patch16_224", num_classes=2)
    ours = model.module.state_dict()
    theirs.load_state_dict({key.replace(".base_layer", ""): value for key, value in ours.items() if "lora" not in key})
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, lora_alpha=16, target_modules=["qkv"])).eval()
    state = filled(model, scale=0.02)
    for key, parameter in theirs.named_parameters():
        if "lora_" in key:
            name = key.removeprefix("base_model.model.").removesuffix(".default.weight")
            parameter.data.copy_(state[name])
        elif key.startswith("base_model.model.head."):
            parameter.data.copy_(state[key.removeprefix("base_model.model.")])
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model.module.eval()(images), theirs(images))


def test_lora_on_parts_of_the_fused_projection(tiny, tiny_weights, plain):
    options = {"rank": 3, "alpha": 6.0, "qkv_parts": ["q", "v"], "last_blocks": 1, "targets": ["qkv", "fc2"]}
    model = build_model(changed(tiny, method={"name": "lora", "options": {"lora": options}}).model, tiny_weights)
    state = filled(model)
    assert model.trained.keys() == {
        "head.weight",
        "head.bias",
        *(f"blocks.1.{path}.lora_{side}" for path in ("attn.qkv.q", "attn.qkv.v", "mlp.fc2") for side in "AB"),
    }
    expected = plain(model)
    with torch.no_grad():
        weight = expected.blocks[1].attn.qkv.weight
        for part, rows in (("q", slice(0, 32)), ("v", slice(64, 96))):
            a, b = (state[f"blocks.1.attn.qkv.{part}.lora_{side}"] for side in "AB")
            weight[rows] += 2.0 * b @ a
        a, b = (state[f"blocks.1.mlp.fc2.lora_{side}"] for side in "AB")
        expected.blocks[1].mlp.fc2.weight += 2.0 * b @ a
        images = torch.randn(2, 3, 32, 32)
        assert torch.allclose(model.module.eval()(images), expected(images), atol=1e-5)
        model.merge()
        assert model.module.state_dict().keys() == expected.state_dict().keys()
        assert torch.allclose(model.module(images), expected(images), atol=1e-5)


def tuners_with_parts():
    records = [get_method(name) for name in method_names()]
    return [one.name for one in records if not isinstance(one, Hybrid) and "qkv_parts" in one.config.model_fields]


@pytest.mark.parametrize("name", tuners_with_parts())
def test_parts_of_the_fused_projection(name, tiny, tiny_weights, plain):
    """Only the chosen rows of the fused projection change, whatever the tuner."""
    options = {name: {"qkv_parts": ["v"]}}
    model = build_model(changed(tiny, method={"name": name, "options": options}).model, tiny_weights)
    images = torch.randn(2, 3, 32, 32)
    start = plain(model)
    with torch.no_grad():
        if all(method.identity_at_start for method, _ in components(Method(name=name))):
            assert torch.allclose(model.module.eval()(images), start(images), atol=1e-5)
        filled(model)
        expected = model.module.eval()(images)
        model.merge()
        assert torch.allclose(model.module(images), expected, atol=1e-5)
        before, after = start.blocks[0].attn.qkv.weight, model.module.blocks[0].attn.qkv.weight
        assert torch.allclose(before[:64], after[:64], atol=1e-6)
        assert not torch.allclose(before[64:], after[64:], atol=1e-4)


def test_adaptformer_against_its_equation(tiny, tiny_weights, plain):
    method = {"name": "adaptformer", "options": {"adaptformer": {"rank": 5}}}
    model = build_model(changed(tiny, method=method).model, tiny_weights)
    state = filled(model)
    expected = plain(model)

    def forward(block, prefix, x):
        x = x + block.attn(block.norm1(x))
        z = block.norm2(x)
        down = torch.relu(z @ state[f"{prefix}.down.weight"].T + state[f"{prefix}.down.bias"])
        return x + block.mlp(z) + 0.1 * (down @ state[f"{prefix}.up.weight"].T + state[f"{prefix}.up.bias"])

    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = expected._pos_embed(expected.patch_embed(images))
        for index, block in enumerate(expected.blocks):
            x = forward(block, f"blocks.{index}.mlp.adaptformer", x)
        assert torch.allclose(model.module.eval()(images), expected.forward_head(expected.norm(x)), atol=1e-5)


def test_pixel_prompt_is_a_frame(tiny, tiny_weights, plain):
    method = {"name": "pixel_prompt", "options": {"pixel_prompt": {"padding": 3}}}
    model = build_model(changed(tiny, method=method).model, tiny_weights)
    state = filled(model)
    assert sum(value.numel() for key, value in state.items() if "frame" in key) == 2 * 3 * 3 * (2 * 32 - 2 * 3)
    frame = torch.zeros(3, 32, 32)
    frame[:, :3], frame[:, -3:] = state["patch_embed.frame_rows"]
    frame[:, 3:-3, :3], frame[:, 3:-3, -3:] = state["patch_embed.frame_columns"]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model.module.eval()(images), plain(model)(images + frame), atol=1e-6)


def test_stochastic_block_attention_draws():
    def rounds(count, **fields):
        return [drawn_blocks(12, Sba(**fields), 7, number) for number in range(count)]

    for draw in ("uniform", "without_replacement", "depth_weighted"):
        for k in (1, 5, 12):
            drawn = rounds(50, blocks_per_round=k, draw=draw)
            assert all(len(set(blocks)) == k and set(blocks) <= set(range(12)) for blocks in drawn)
            assert drawn == rounds(50, blocks_per_round=k, draw=draw), "pure"
    assert rounds(20) != [drawn_blocks(12, Sba(), 8, number) for number in range(20)], "of the seed"
    in_turn = [blocks[0] for blocks in rounds(24, draw="without_replacement")]
    assert sorted(in_turn[:12]) == sorted(in_turn[12:]) == list(range(12))
    assert in_turn[:12] != in_turn[12:]
    assert {block for blocks in rounds(3, blocks_per_round=5, draw="without_replacement") for block in blocks} == set(
        range(12)
    )
    # Frequencies over many rounds, against the probabilities; four standard deviations.
    for draw, share in (("uniform", lambda block: 1 / 12), ("depth_weighted", lambda block: (block + 1) / 78)):
        seen = np.bincount([blocks[0] for blocks in rounds(4000, draw=draw)], minlength=12) / 4000
        for block in range(12):
            p = share(block)
            assert abs(seen[block] - p) < 4 * np.sqrt(p * (1 - p) / 4000)


def test_draws_are_the_same_on_every_machine():
    """Computed once and written down: a change of this draw makes old runs impossible to continue."""
    assert [drawn_blocks(12, Sba(blocks_per_round=2), 7, number) for number in range(4)] == [
        [7, 9],
        [4, 5],
        [1, 7],
        [10, 11],
    ]


def test_exchange_of_a_round_dependent_method(tiny):
    exchange = build_model(changed(tiny, method={"name": "sba+vpt_deep", "options": {}}).model, None).exchange(6)
    assert exchange.always == {"head.weight", "head.bias", "blocks.0.prompts", "blocks.1.prompts"}
    assert {len(keys) for keys in exchange.rotating} == {4}
    assert len(set(exchange.rotating)) == 2
    assert exchange.trained(0).keys() == exchange.always | exchange.rotating[0]
    assert exchange.down(2, 2).keys() == exchange.always
    assert exchange.down(1, 3).keys() == exchange.always | exchange.rotating[1] | exchange.rotating[2]
    assert type(exchange).from_json(json.loads(json.dumps(exchange.to_json()))) == exchange


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "lroa"}, "'lroa', which is unknown; known methods are"),
        ({"name": "lora_vpt+lora"}, "names a method twice"),
        ({"name": "lora", "options": {"vpt_deep": {}}}, "method.options.vpt_deep' belongs to no part"),
        ({"name": "lora", "options": {"lora": {"rnk": 4}}}, "field 'rnk' is unknown; did you mean 'rank'"),
        ({"name": "lora", "options": {"lora": {"rank": 0}}}, "field 'rank' is 0"),
        ({"name": "lora", "options": {"lora": {"targets": ["qvk"]}}}, "qvk"),
        ({"name": "lora", "options": {"lora": {"last_blocks": 3}}}, "'last_blocks' is 3, but it has 2 blocks"),
        ({"name": "sba", "options": {"sba": {"blocks_per_round": 3}}}, "'blocks_per_round' is 3, but it has 2 blocks"),
        (
            {"name": "linear_probe", "head": "local"},
            "'method.head' is 'local', but method 'linear_probe' exchanges nothing else",
        ),
        ({"name": "lora+dora"}, "'blocks.0.attn.qkv' has another method's adapter already"),
        (
            {"name": "full+hra"},
            "no gradient would reach 2 of the tensors that it trains, 'blocks.0.attn.qkv.weight' among them",
        ),
        ({"name": "vpt_deep+dvpt"}, "one method of prompts can be used at a time"),
        (
            {"name": "pixel_prompt", "options": {"pixel_prompt": {"padding": 16}}},
            "'padding' is 16, but its images are of 32 x 32",
        ),
        ({"name": "oft", "options": {"oft": {"block_size": 5}}}, "method 'oft' cannot be applied to backbone"),
    ],
)
def test_errors_name_the_field(tiny, method, message):
    with pytest.raises(UserError, match=message):
        build_model(changed(tiny, method={"options": {}, **method}).model, None)


def test_a_dry_run_by_shapes_finds_what_a_real_one_does(tiny, monkeypatch):
    states = []
    for large in (0, math.inf):
        monkeypatch.setattr("pt_peft.model.adapted_model._LARGE", large)
        with pytest.raises(UserError, match="no gradient would reach 2 of the tensors"):
            build_model(changed(tiny, method={"options": {}, "name": "full+hra"}).model, None)
        model = build_model(changed(tiny, method={"options": {}, "name": "lora_vpt"}).model, None)
        assert all(parameter.grad is None and not parameter.is_meta for parameter in model.module.parameters())
        states.append(model.state())
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[1][key], states[0][key]) for key in states[0])


@pytest.mark.parametrize(
    ("name", "method", "reason"),
    [
        ("beit_base_patch16_224", "vpt_deep", "relative position bias for a fixed number of tokens"),
        ("vit_small_patch16_18x2_224", "adaptformer", "'blocks.0' has no MLP"),
        ("swin_tiny_patch4_window7_224", "lora", "not a plain Vision Transformer"),
        ("deit_tiny_distilled_patch16_224", "lora", "not a plain Vision Transformer"),
    ],
)
def test_a_method_that_cannot_apply_says_why(name, method, reason):
    with pytest.raises(UserError, match=reason):
        build_model(of(Backbone(name=name, image_size=224, sha256="0" * 64), method), None)


def test_a_name_is_registered_once():
    record = get_method("lora_vpt")
    with pytest.raises(ValueError, match="registered already"):
        register(record)
    with pytest.raises(ValueError, match="contains"):
        register(Hybrid(name="a+b", summary="", paper="", parts=("lora",), learning_rate=1e-3))


def test_components_of_a_hybrid():
    assert [method.name for method, _ in components(Method(name="lora_vpt+bitfit"))] == ["lora", "vpt_deep", "bitfit"]


@pytest.mark.parametrize("names", ["lora+ia3", "dora+loha", "vera+lora", "oft+rslora"])
def test_tuners_on_different_layers_go_together(names, tiny, tiny_weights, plain):
    first, second = names.split("+")
    options = {first: {"targets": ["qkv"]}, second: {"targets": ["fc1"]}}
    model = build_model(changed(tiny, method={"name": names, "options": options}).model, tiny_weights)
    assert [part.method.name for part in model.parts if part.keys] == [first, second]
    noise = np.random.default_rng(0)
    state = model.state()
    model.load({key: (one + noise.normal(size=one.shape, scale=0.05)).astype(np.float32) for key, one in state.items()})
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.module.eval()
    with torch.no_grad():
        before = model.module(images)
        model.merge()
        assert torch.allclose(model.module(images), before, atol=1e-5)


def test_a_backbone_with_running_statistics_is_refused(tiny):
    backbone = {"name": "vit_small_resnet26d_224", "kwargs": {}, "image_size": 64}
    with pytest.raises(UserError, match=r"whose layer '.*' keeps running statistics"):
        build_model(changed(tiny, backbone=backbone).model, None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "broken.py: registers no method"),
        ("1 / 0", "broken.py: ZeroDivisionError: division by zero"),
        (
            "from pt_peft.model.method import Hybrid, register\n"
            "register(Hybrid(name='broken', summary='s', paper='p', parts=('lora_vpt', 'norm'), learning_rate=1e-3))",
            "method 'broken': its part 'lora_vpt' is no elementary method",
        ),
    ],
)
def test_a_wrong_method_file_is_named(tmp_path, code, message):
    shutil.copytree(ROOT / "pt_peft", tmp_path / "pt_peft", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pt_peft" / "methods" / "broken.py").write_text(code)
    script = "from pt_peft.model.method import method_names; method_names()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert message in done.stderr.splitlines()[-1]
