"""The registry, and what must hold of every method in it."""

import copy

import numpy as np
import pytest
import torch
from helpers import changed

from pt_peft.backbone import create_backbone
from pt_peft.errors import UserError
from pt_peft.experiment import Backbone, Data, Experiment, Method
from pt_peft.method import (
    Hybrid,
    build_model,
    canonical_parameters,
    components,
    exchanged_parameters,
    exchanged_state,
    get_method,
    load_exchanged,
    method_names,
    register,
)

EXPECTED = {"vit_base_patch16_224": (768, 12), "vit_small_patch16_224": (384, 12), "vit_tiny_patch16_224": (192, 12)}


@pytest.fixture(params=method_names())
def experiment(request, tiny):
    return changed(tiny, method={"name": request.param, "options": {}})


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("method", ["linear_probe", "lora", "vpt_deep", "lora_vpt"])
def test_exchanged_parameters(name, method):
    d, blocks = EXPECTED[name]
    counts = {"linear_probe": 0, "lora": blocks * 4 * (d + 3 * d), "vpt_deep": blocks * 10 * d}
    counts["lora_vpt"] = counts["lora"] + counts["vpt_deep"]
    experiment = Experiment(
        name="x",
        backbone=Backbone(name=name, image_size=224, sha256="0" * 64),
        data=Data(source="lesions", classes=("a", "b")),
        method=Method(name=method),
    )
    exchanged = exchanged_state(build_model(experiment, None))
    assert sum(value.size for key, value in exchanged.items() if not key.startswith("head.")) == counts[method]
    assert {key for key in exchanged if key.startswith("head.")} == {"head.weight", "head.bias"}


def test_counts_of_the_design_table():
    assert 12 * 4 * (768 + 3 * 768) == 147_456 and 12 * 10 * 768 == 92_160


def test_identity_at_the_start(experiment, tiny_weights):
    model = build_model(experiment, tiny_weights).eval()
    plain = create_backbone(experiment.backbone, 4, tiny_weights).eval()
    plain.get_classifier().load_state_dict(model.get_classifier().state_dict())
    images = torch.randn(2, 3, 32, 32)
    promised = all(method.identity_at_start for method, _ in components(experiment.method))
    assert torch.equal(model(images), plain(images)) == promised


def test_gradients_on_exchanged_tensors_only_and_the_rest_unchanged(experiment, tiny_weights):
    torch.manual_seed(0)
    model = build_model(experiment, tiny_weights)
    before = copy.deepcopy({key: value.detach() for key, value in canonical_parameters(model).items()})
    optimizer = torch.optim.SGD(exchanged_parameters(model).values(), lr=0.1)
    # Twice: LoRA's A has no gradient while B is zero.
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
        optimizer.step()
    exchanged = exchanged_parameters(model)
    for key, parameter in canonical_parameters(model).items():
        if key in exchanged:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
            assert not torch.equal(parameter, before[key]), key
        else:
            assert parameter.grad is None and torch.equal(parameter, before[key]), key


def test_backbone_keys_are_timms_own(experiment, tiny_weights):
    plain = create_backbone(experiment.backbone, 4, tiny_weights)
    assert {name for name, _ in plain.named_parameters()} <= set(canonical_parameters(build_model(experiment, None)))


def test_state_round_trip(experiment, tiny_weights):
    model = build_model(experiment, tiny_weights).eval()
    generator = np.random.default_rng(0)
    state = {key: generator.normal(size=value.shape).astype(np.float32) for key, value in exchanged_state(model).items()}
    load_exchanged(model, state)
    returned = exchanged_state(model)
    assert returned.keys() == state.keys() and all(np.array_equal(returned[key], state[key]) for key in state)
    other = build_model(experiment, tiny_weights).eval()
    load_exchanged(other, state)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), other(images))


def test_initial_state_depends_on_seed_alone(experiment, tiny_weights):
    first, second = exchanged_state(build_model(experiment, tiny_weights)), exchanged_state(build_model(experiment, None))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    other = exchanged_state(build_model(changed(experiment, seed=1), None))
    assert not np.array_equal(first["head.weight"], other["head.weight"])


def test_building_leaves_the_global_generator_alone(experiment):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    build_model(experiment, None)
    assert torch.equal(torch.rand(1), expected)


def test_deep_prompts_against_a_plain_loop(tiny, tiny_weights):
    experiment = changed(tiny, method={"name": "vpt_deep", "options": {"vpt_deep": {"num_prompts": 5}}})
    model = build_model(experiment, tiny_weights).eval()
    plain = create_backbone(experiment.backbone, 4, tiny_weights).eval()
    plain.get_classifier().load_state_dict(model.get_classifier().state_dict())
    prompts = [value for key, value in exchanged_parameters(model).items() if key.endswith("prompts")]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(images))))
        x_class, x_patches = x[:, :1], x[:, 1:]
        for block, prompt in zip(plain.blocks, prompts, strict=True):
            x = block(torch.cat([x_class, prompt.expand(2, -1, -1), x_patches], dim=1))
            x_class, x_patches = x[:, :1], x[:, 6:]
        expected = plain.forward_head(plain.norm(torch.cat([x_class, x_patches], dim=1)))
    assert torch.allclose(model(images), expected, atol=1e-6)


def test_lora_against_its_equation(tiny, tiny_weights):
    experiment = changed(tiny, method={"name": "lora", "options": {"lora": {"rank": 3, "alpha": 6.0}}})
    model = build_model(experiment, tiny_weights).eval()
    state = exchanged_state(model)
    generator = np.random.default_rng(1)
    for key in state:
        state[key] = generator.normal(size=state[key].shape, scale=0.1).astype(np.float32)
    load_exchanged(model, state)
    plain = create_backbone(experiment.backbone, 4, tiny_weights).eval()
    with torch.no_grad():
        for index, block in enumerate(plain.blocks):
            a, b = (torch.from_numpy(state[f"blocks.{index}.attn.qkv.lora_{side}"]) for side in "AB")
            assert a.shape == (3, 32) and b.shape == (96, 3)
            block.attn.qkv.weight += 2.0 * b @ a
        for name in ("weight", "bias"):
            getattr(plain.head, name).copy_(torch.from_numpy(state[f"head.{name}"]))
        images = torch.randn(2, 3, 32, 32)
        assert torch.allclose(model(images), plain(images), atol=1e-5)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "lroa"}, "'lroa', which is unknown; known methods are"),
        ({"name": "lora_vpt+lora"}, "names a method twice"),
        ({"name": "lora", "options": {"vpt_deep": {}}}, "method.options.vpt_deep' belongs to no part"),
        ({"name": "lora", "options": {"lora": {"rnk": 4}}}, "field 'rnk' is unknown; did you mean 'rank'"),
        ({"name": "lora", "options": {"lora": {"rank": 0}}}, "field 'rank' is 0"),
        ({"name": "lora", "options": {"lora": {"targets": ["qvk"]}}}, "qvk"),
    ],
)
def test_errors_name_the_field(tiny, method, message):
    with pytest.raises(UserError, match=message):
        build_model(changed(tiny, method={"options": {}, **method}), None)


def test_a_name_is_registered_once():
    record = get_method("lora_vpt")
    with pytest.raises(ValueError, match="registered already"):
        register(record)
    with pytest.raises(ValueError, match="contains"):
        register(Hybrid(name="a+b", summary="", paper="", parts=("lora",)))
