"""Who computes in bfloat16 where ``training.precision`` is ``auto``, and that this is the same as to ask for it."""

from contextlib import nullcontext
from typing import Any, cast

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import nn

from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from helpers import changed, opened
from pt_peft.model.adapter_file import adapter_header, load_header
from pt_peft.model.model_input import autocast
from pt_peft.model.precision import MOST_TOKENS, choose_attention, resolved_precision
from pt_peft.presets import committed_jobs, preset

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """Makes torch tell of other instructions of the processor than it has."""

    def has(*names: str) -> None:
        known = {"avx2": True, "avx512_bf16": False, "sve_max_length": 0, **dict.fromkeys(names, True)}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)

    return has


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "float32"),
        (("avx512_f", "avx512_bw", "avx512_vnni", "amx_int8"), "float32"),
        (("avx512_bf16",), "bfloat16"),
        (("amx_tile", "amx_bf16"), "bfloat16"),
        (("bf16", "sve_bf16"), "float32"),
    ],
)
def test_auto_follows_the_instructions_of_the_processor(processor, names, expected):
    processor(*names)
    assert resolved_precision("auto", CPU) == expected
    assert [resolved_precision(asked, CPU) for asked in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolved_precision("auto", CPU) == "float32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_follows_the_gpu_that_is_used(processor, monkeypatch, native, expected):
    processor("avx512_bf16")
    asked = []

    def device(one):
        asked.append(one)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolved_precision("auto", torch.device("cuda", 1)) == expected
    assert asked == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("names", "same", "other"), [((), "float32", "bfloat16"), (["amx_bf16"], "bfloat16", "float32")]
)
def test_auto_is_what_the_device_would_be_asked_for(tiny, site, tmp_path, processor, names, same, other):
    """Training, statistics, and the features of a frozen prefix, which have a cache."""
    processor(*names)
    settings = site.model_copy(update={"cache": str(tmp_path / "cache")})
    method = {"name": "lora", "options": {"lora": {"last_blocks": 1}}}

    def final(precision: str):
        head, rounds = {"start": "ridge"}, {"rounds": 1}
        asked = changed(tiny, method=method, head=head, federation=rounds, training={"precision": precision})
        trainer = make_trainer(asked, settings)
        found = federate(trainer, load_sites(asked, settings, ["site-1", "site-2"]))
        return trainer.precision, found.tensors

    precision, tensors = final("auto")
    assert precision == same
    assert greatest_difference(tensors, final(same)[1]) == 0
    assert greatest_difference(tensors, final(other)[1]) > 0
    assert len({*(tmp_path / "cache").glob("*/features.npy")}) > 0


def test_a_worker_says_what_it_computed_in(tiny, site, tmp_path, processor):
    processor("avx512_bf16")
    handler = opened(changed(tiny, training={"precision": "auto"}), site, tmp_path)
    _, initial = handler.initial_state({}, {})
    report, _ = handler.train({"round": 0, "since": 0, "taken": None}, dict(initial))
    assert report["precision"] == "bfloat16"
    assert load_header(tmp_path / "local_adapter.safetensors")["precision"] == ["bfloat16"]
    evaluated, _ = handler.evaluate({"round": 0, "since": 0, "taken": None, "splits": ["val"]}, dict(initial))
    assert evaluated["precision"] == "bfloat16"


def test_the_header_says_no_more_than_its_writer_knows(tiny):
    auto = changed(tiny, training={"precision": "auto"})
    assert adapter_header(tiny)["precision"] == ["float32"]
    assert adapter_header(auto)["precision"] == []
    assert adapter_header(auto, {"float32", "bfloat16"})["precision"] == ["bfloat16", "float32"]


def test_presets_of_real_images_take_what_is_faster_and_the_demo_ends_alike_everywhere():
    assert preset("medmnist:pathmnist")[0].training.precision == "auto"
    assert {one.training.precision for one in committed_jobs().values()} == {"float32"}


def attentions(model: nn.Module) -> list[Attention]:
    found = [one for one in model.modules() if isinstance(one, Attention)]
    assert found
    return found


@pytest.mark.parametrize(
    ("precision", "device", "tokens", "fused"),
    [
        ("bfloat16", "cpu", 37, False),
        ("bfloat16", "cpu", MOST_TOKENS, False),
        ("bfloat16", "cpu", MOST_TOKENS + 1, True),
        ("bfloat16", "cuda", 37, True),
        ("float32", "cpu", 37, True),
    ],
)
def test_attention_in_bfloat16_on_a_cpu_is_products_of_matrices(precision, device, tokens, fused):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    choose_attention(model, tokens, precision, torch.device(device))
    assert {layer.fused_attn for layer in attentions(model)} == {fused}


@pytest.mark.parametrize(("size", "tokens"), [(224, 197), (512, MOST_TOKENS)])
def test_its_training_step_keeps_no_more_than_the_footprint_tells_a_site(size, tokens):
    def kept(precision, images):
        model = timm.create_model("vit_small_patch16_224", img_size=size, depth=1)
        choose_attention(model, tokens, precision, CPU)
        storages = {}
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda one: storages.setdefault(one.untyped_storage().data_ptr(), one), lambda one: one
        )
        with hooks, autocast(precision, CPU):
            model(torch.zeros(images, 3, size, size))
        return sum(one.untyped_storage().nbytes() for one in storages.values())

    plain, fused = (kept(precision, 2) - kept(precision, 1) for precision in ("bfloat16", "float32"))
    assert plain < fused


def test_both_ways_give_the_same_but_for_rounding():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
    exact = model(images)
    found = []
    for fused in (True, False):
        for layer in attentions(model):
            cast(Any, layer).fused_attn = fused
        with autocast("bfloat16", CPU):
            found.append(model(images).float())
    rounding = (found[0] - exact).abs().max()
    assert rounding > 0
    assert (found[1] - exact).abs().max() < 3 * rounding
