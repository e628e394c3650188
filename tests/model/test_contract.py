"""What must hold of every method in the registry, on every kind of Vision Transformer of timm."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers import changed
from pt_peft.data.site_data import load_site_data
from pt_peft.errors import UserError
from pt_peft.experiment.sections import Backbone, Method, ModelSpec
from pt_peft.experiment.site import Site
from pt_peft.model.adapted_model import build_model, canonical_parameters
from pt_peft.model.backbone import create_backbone, head_name
from pt_peft.model.frozen_prefix import FrozenPrefix, frozen_prefix
from pt_peft.model.method import components, method_names
from pt_peft.model.model_input import Normalisation
from pt_peft.training.trainer import LocalTrainer

SIDE, CLASSES = 32, ("a", "b", "c")
SMALL = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
SCALED = {**SMALL, "init_values": 0.5}
"""Layer scale as in a trained model; at timm's start of 1e-5 no gradient is worth the name."""
ARCHITECTURES = {
    "deit": ("deit_tiny_patch16_224", SMALL),
    "deit3, layer scale": ("deit3_small_patch16_224", SCALED),
    "augreg": ("vit_tiny_patch16_224", SMALL),
    "mae, average pooling": ("vit_base_patch16_224", {**SMALL, "global_pool": "avg"}),
    "clip, norm before the blocks": ("vit_base_patch16_clip_224", SMALL),
    "dinov2, layer scale": ("vit_small_patch14_dinov2", SCALED),
    "dinov2, register tokens": ("vit_small_patch14_reg4_dinov2", SCALED),
    "siglip, no class token, attention pooling": ("vit_base_patch16_siglip_224", SMALL),
    "siglip, no class token, average pooling": ("vit_base_patch16_siglip_gap_224", SMALL),
    "eva-02, split qkv, rotary, gated MLP": ("eva02_tiny_patch14_224", SMALL),
    "eva, fused qkv with a bias apart": ("eva_giant_patch14_224", SMALL),
    "dinov3, register tokens, rotary": ("vit_small_patch16_dinov3", SCALED),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def spec_of(method: Method, architecture: str) -> ModelSpec:
    name, kwargs = ARCHITECTURES[architecture]
    backbone = Backbone(name=name, kwargs=kwargs, image_size=SIDE, sha256="0" * 64)
    return ModelSpec(seed=0, backbone=backbone, classes=CLASSES, method=method)


def plain_model(model, spec):
    """A timm model with the backbone and head of `model`, and nothing else."""
    plain = create_backbone(spec.backbone, len(spec.classes), None)
    state = canonical_parameters(model.module)
    plain.load_state_dict({name: state[name].detach() for name, _ in plain.named_parameters()}, strict=False)
    return plain.eval()


def randomise(model, scale):
    """Moves every trained tensor away from its start."""
    generator = np.random.default_rng(0)
    state = {key: value + generator.normal(size=value.shape, scale=scale) for key, value in model.state().items()}
    model.load({key: value.astype(np.float32) for key, value in state.items()})


def takes_last_blocks(method):
    return "last_blocks" in method.config.model_fields


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", method_names())
def test_method_on_architecture(name, architecture):
    spec = spec_of(Method(name=name), architecture)
    methods = [method for method, _ in components(spec.method)]
    model = build_model(spec, None)
    module = model.module.eval()
    torch.manual_seed(0)
    images = torch.randn(4, 3, SIDE, SIDE)

    plain = plain_model(model, spec)
    assert {key for key, _ in plain.named_parameters()} <= canonical_parameters(module).keys()
    with torch.no_grad():
        if all(method.identity_at_start for method in methods):
            if name != "pissa":  # whose frozen weight is the rest of a decomposition
                assert torch.allclose(module(images), plain(images), atol=1e-5)
        else:
            assert not torch.equal(module(images), plain(images))

    # Gradients everywhere they belong, and nothing else moves.
    frozen = {
        key: value.detach().clone() for key, value in canonical_parameters(module).items() if key not in model.trained
    }
    buffers = {key: value.clone() for key, value in module.named_buffers()}
    assert {key for key, value in canonical_parameters(module).items() if value.requires_grad} == model.trained.keys()
    start = model.state()
    module.train()
    optimizer = torch.optim.Adam(model.trained.values(), lr=1e-2)
    reached = set()
    for _ in range(3):  # LoRA's A has no gradient while B is zero
        optimizer.zero_grad()
        functional.cross_entropy(module(images), torch.tensor([0, 1, 2, 0])).backward()
        reached |= {
            key for key, value in model.trained.items() if value.grad is not None and value.grad.abs().max() > 0
        }
        optimizer.step()
    assert reached == model.trained.keys()
    assert all(not np.array_equal(value, start[key]) for key, value in model.state().items())
    after = canonical_parameters(module)
    assert all(after[key].grad is None and torch.equal(after[key], value) for key, value in frozen.items())
    assert all(torch.equal(value, buffers[key]) for key, value in module.named_buffers() if key in buffers)

    # What travels is all there is to know.
    module.eval()
    randomise(model, 0.02)
    other = build_model(spec, None)
    other.load(model.state())
    with torch.no_grad():
        expected = module(images)
        assert torch.equal(other.module.eval()(images), expected)

    if all(method.merge for method in methods):
        reason = ""
        try:
            model.merge()
        except UserError as error:
            reason = str(error)
        if reason:
            assert "bias" in reason
        else:
            merged = create_backbone(spec.backbone, len(CLASSES), None).eval()
            merged.load_state_dict(model.module.state_dict())
            with torch.no_grad():
                assert torch.allclose(merged(images), expected, atol=1e-5)
    else:
        with pytest.raises(UserError, match="cannot be merged"):
            model.merge()


@pytest.mark.parametrize("name", method_names())
def test_initial_state_depends_on_seed_alone(name, tiny, tiny_weights):
    """And on the backbone's weights only where the record says so: else the server need not have them."""
    spec = changed(tiny, method={"name": name, "options": {}}).model
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = build_model(spec, tiny_weights).state(), build_model(spec, tiny_weights).state()
    assert torch.equal(torch.rand(1), expected), "the global generator was left changed"
    assert all(np.array_equal(first[key], second[key]) for key in first)
    random = build_model(spec, None).state()
    of_weights = any(method.trains_backbone or method.starts_from_backbone for method, _ in components(spec.method))
    assert of_weights or all(np.array_equal(first[key], random[key]) for key in first)
    other = build_model(spec.model_copy(update={"seed": 1}), None).state()
    assert not np.array_equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", method_names())
def test_the_frozen_prefix_is_the_plain_backbones(name, tiny, tiny_weights):
    """Features are cached under a key without the method: no method may change what lies before its own tensors."""
    own = {method.name: {"last_blocks": 1} for method, _ in components(Method(name=name)) if takes_last_blocks(method)}
    spec = changed(tiny, method={"name": name, "options": own}).model
    prefix = frozen_prefix(build_model(spec, tiny_weights))
    if prefix is None:
        return
    plain = FrozenPrefix(create_backbone(spec.backbone, len(spec.classes), tiny_weights), prefix.blocks)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8)
    found, expected = (one.features(pixels, Normalisation(spec.backbone), "float32") for one in (prefix, plain))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", method_names())
def test_a_restart_in_the_middle_changes_nothing(name, precision, device, tiny, tiny_weights):
    experiment = changed(tiny, method={"name": name, "options": {}}, training={"precision": precision})
    train = load_site_data(experiment, Site(), "site-1", ["site-1"]).train

    def trainer():
        return LocalTrainer(experiment, tiny_weights, torch.device(device))

    undisturbed, exchange = trainer(), trainer().exchange
    first = undisturbed.train("site-1", train, undisturbed.initial, 0)
    second = undisturbed.train("site-1", train, first.tensors, 1)
    again = trainer().train("site-1", train, first.tensors, 1)
    assert second.loss == again.loss
    assert all(value.dtype == np.float32 for value in second.tensors.values())
    assert all(np.array_equal(value, again.tensors[key]) for key, value in second.tensors.items())
    moved = {key for key, value in second.tensors.items() if not np.array_equal(value, first.tensors[key])}
    assert moved == exchange.trained(1).keys()


@pytest.mark.parametrize("head", ["exchanged", "local", "frozen"])
def test_head(head):
    spec = spec_of(Method(name="lora", head=head), "augreg")
    model = build_model(spec, None)
    keys = {"head.weight", "head.bias"}
    assert (keys <= model.trained.keys()) == (head != "frozen")
    assert (keys <= model.exchange(2).specs.keys()) == (head == "exchanged")
    assert model.personal == (keys if head == "local" else set())
    assert model.module.head.weight.requires_grad == (head != "frozen")
    assert model.module.head.out_features == len(CLASSES)
    same = build_model(spec_of(Method(name="lora"), "augreg"), None)
    assert torch.equal(model.module.head.weight, same.module.head.weight)


def test_every_architecture_has_its_own_head():
    for architecture in ARCHITECTURES:
        model = build_model(spec_of(Method(name="linear_probe"), architecture), None)
        prefix = head_name(model.module)
        assert model.trained.keys() == {f"{prefix}.weight", f"{prefix}.bias"}
