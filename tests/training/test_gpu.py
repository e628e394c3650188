"""What a trainer does on a GPU. Without one the CPU stands for it: the batches and the loop are the same code."""

import json
import os
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark.oracle.reference import greatest_difference, load_sites
from helpers import changed
from pt_peft import gpu
from pt_peft.data.device_batches import DeviceSplits
from pt_peft.errors import UserError
from pt_peft.experiment.site import Site
from pt_peft.schema import parse
from pt_peft.training.adjustments import Correction, Pull, RankLimit
from pt_peft.training.trainer import LocalTrainer, pick_device, site_device

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def trainer_of(experiment, weights, room: int | None = None) -> LocalTrainer:
    """A trainer; with `room` its splits lie on a device that has so many bytes."""
    trainer = LocalTrainer(experiment, weights, CPU)
    if room is not None:
        trainer._splits = DeviceSplits(CPU, lambda _: room)
    return trainer


PUBLIC_NOISE = {
    "sample": {"noise_multiplier": 0.1, "max_grad_norm": 1.0, "delta": 1e-5},
    "randomness": "insecure_from_public_seed",
}
FIELDS = {
    "images": {"data": {"augment": ["flip", "rotate90"]}},
    "weighted sampler": {"training": {"imbalance": "weighted_sampler", "local_epochs": 2}},
    "features": {"method": {"name": "linear_probe", "options": {}}, "federation": {"rounds": 8}},
    "noise": {"privacy": PUBLIC_NOISE},
}


@pytest.mark.parametrize("room", [2**30, 0], ids=["fits", "does not fit"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_the_same_adapters_and_predictions(fields, room, tiny, tiny_weights, site, tmp_path):
    experiment = changed(tiny, **fields)
    sites = load_sites(experiment, site.model_copy(update={"cache": str(tmp_path)}), ["a", "b"])
    plain, other = trainer_of(experiment, tiny_weights), trainer_of(experiment, tiny_weights, room)
    for name, number in (("a", 0), ("b", 0), ("a", 1)):
        for one in (plain, other):
            one.features({}, sites[name].train, "none")  # in inference mode, before the same images train
        expected, found = (one.train(name, sites[name].train, {}, number) for one in (plain, other))
        assert found.loss == expected.loss
        assert all(np.array_equal(found.tensors[key], expected.tensors[key]) for key in expected.tensors)
        logits = [one.predict(found.tensors, sites[name].val)[0] for one in (plain, other)]
        assert torch.equal(*logits)
    assert other._splits
    assert bool(other._splits._held) == (room > 0)


class NoWaiting(TorchDispatchMode):
    """Fails on what makes a GPU's host wait: values that Python asks for, and results whose shape depends on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"):
            raise AssertionError(f"{name} waits for the device")
        if name.startswith("aten::index") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8)
            for one in (args[1] if isinstance(args[1], list | tuple) else ())
        ):
            raise AssertionError(f"{name} with a mask waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device: torch.device):
    def refuse(*_, **__):
        raise AssertionError("a copy to the host waits for the device")

    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        patch.setattr(torch.Tensor, "cpu", refuse)
        try:
            with NoWaiting():
                yield
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "fields",
    [
        {"data": {"augment": ["flip", "rotate90", "intensity"]}},
        {"training": {"imbalance": "balanced_softmax"}},
        {"training": {"imbalance": "weighted_loss", "label_smoothing": 0.1, "precision": "bfloat16"}},
        {"training": {"imbalance": "federation_weights"}},
    ],
    ids=["augmentation", "balanced softmax", "weighted loss in bfloat16", "federation weights"],
)
@pytest.mark.parametrize("room", [2**30, 0], ids=["fits", "does not fit"])
@pytest.mark.parametrize(
    "device",
    [CPU, pytest.param(GPU, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"))],
    ids=str,
)
def test_no_step_waits_for_the_device(device, room, fields, tiny, tiny_weights, site, tmp_path, monkeypatch):
    experiment = changed(tiny, **fields)
    sites = load_sites(experiment, site.model_copy(update={"cache": str(tmp_path)}), ["a", "b"])
    trainer = LocalTrainer(experiment, tiny_weights, device)
    trainer._splits = DeviceSplits(device, lambda _: room)
    # As on a GPU; the other kind asks the CPU, where it counts steps, for their number.
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused: adamw(groups, fused=True))
    adjust = [Correction({key: np.ones_like(value) for key, value in trainer.model.state().items()}).attach]
    adjust += [partial(Pull, 0.1, keys=trainer.model.trained), partial(RankLimit, 2)]
    steps = []
    with ExitStack() as guarded:

        def on_step(loss):
            steps.append(loss)
            if len(steps) == 1:  # what comes before the first step may wait
                guarded.enter_context(no_waiting(device))
            if len(steps) == 3:
                guarded.close()

        trainer.train("a", sites["a"].train, {}, 0, on_step, adjust)
    assert len(steps) == 3


def test_a_gpus_settings_are_as_they_were_before():
    """They hold within the context alone, also if it fails, and a CPU has none."""

    # torch makes what is set here at run time, so that no type checker finds it.
    cudnn: Any = torch.backends.cudnn
    deterministic: Any = torch.utils.deterministic

    def settings():
        return (
            torch.get_float32_matmul_precision(),
            cudnn.conv.fp32_precision,
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            deterministic.fill_uninitialized_memory,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    before = settings()
    with gpu.exact(CPU):
        assert settings() == before

    def fail():
        with gpu.exact(GPU):
            assert settings() == ("highest", "ieee", False, True, False, False, ":4096:8")
            assert not torch.backends.cuda.matmul.allow_tf32
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert settings() == before
    assert torch.backends.cudnn.allow_tf32  # torch's old names for the same agree


@pytest.mark.parametrize(
    ("free", "share", "reserved", "allocated", "expected"),
    [(10, 1.0, 0, 0, 10), (10, 1.0, 6, 2, 14), (90, 0.25, 6, 2, 23), (0, 0.1, 12, 12, 0)],
)
def test_room(free, share, reserved, allocated, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 100))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", {0: share, 1: share}.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    assert gpu.room(GPU) == gpu.room(torch.device("cuda")) == expected


def test_a_gpu_evaluates_as_many_images_at_a_time_as_fit(tiny, tiny_weights, monkeypatch):
    trainer = LocalTrainer(tiny, tiny_weights, CPU)
    assert trainer._evaluation_batch() == 256
    trainer.device = GPU
    nbytes = 3 * 4 * (4 * 32) * 17  # three copies in float32 of the MLP's 4 x 32 values for each of 17 tokens
    for room, images in ((2**40, 1024), (4 * 300 * nbytes, 300), (0, 1)):
        monkeypatch.setattr(gpu, "room", lambda _, room=room: room)
        assert trainer._evaluation_batch() == images


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(gpu.VISIBLE, raising=False)


@pytest.mark.parametrize(
    ("name", "expected"), [("auto", GPU), ("cpu", CPU), ("cuda", GPU), ("cuda:1", torch.device("cuda", 1))]
)
def test_devices(name, expected, two_gpus):
    assert pick_device(name) == expected


def test_a_gpu_that_is_not_there(two_gpus, monkeypatch):
    with pytest.raises(UserError, match=r"'device' is 'cuda:2', but the last GPU that torch finds here is 'cuda:1'\."):
        pick_device("cuda:2")
    monkeypatch.setenv(gpu.VISIBLE, "3,MIG-a")
    with pytest.raises(UserError, match=r"finds here with CUDA_VISIBLE_DEVICES=3,MIG-a is 'cuda:1'\."):
        pick_device("cuda:3")


@pytest.mark.parametrize("name", ["auto", "cuda:1"])
@pytest.mark.parametrize("visible", ["7", "GPU-5cea0acf", "MIG-5cea0acf", " 0"])
def test_a_gpu_that_was_given_and_is_not_there(name, visible, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(gpu.VISIBLE, visible)
    with pytest.raises(UserError) as found:
        pick_device(name)
    assert str(found.value) == (
        f"site.json: field 'device' is '{name}', but torch finds no GPU with CUDA_VISIBLE_DEVICES={visible}; GPUs of "
        "this machine there, or 'cpu' for the device, would be right."
    )
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_no_gpu_was_given(visible, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(gpu.VISIBLE, visible)
    assert pick_device("auto") == CPU


def test_a_cpu_asks_for_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", None)
    assert pick_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_no_gpu_at_all(name, monkeypatch):
    monkeypatch.delenv(gpu.VISIBLE, raising=False)
    assert pick_device("auto") == CPU
    with pytest.raises(UserError, match="torch finds no GPU here; 'auto' or 'cpu' would be right"):
        pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1000", " cuda", 1, None])
def test_names_that_are_no_device(name):
    with pytest.raises(UserError) as found:
        parse(Site, {"device": name}, "site.json")
    assert str(found.value) == (
        f"site.json: field 'device' is {json.dumps(name)}: 'auto', 'cpu', 'cuda' or the number of a GPU, such as "
        "'cuda:1', would be right."
    )


def test_a_site_takes_its_share_of_the_gpu(two_gpus, monkeypatch):
    limits = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *arguments: limits.append(arguments))
    assert site_device(Site(device="cuda:1", gpu_memory_share=0.25)) == torch.device("cuda", 1)
    assert limits == [(0.25, torch.device("cuda", 1))]
    site_device(Site(device="cpu", gpu_memory_share=0.25))
    assert len(limits) == 1


@pytest.fixture(params=["images", "features"])
def trained(request, tiny, tiny_weights, site, tmp_path):
    """Two rounds on images, or on the features of the first block."""
    if request.param == "features":
        last = {"lora": {"last_blocks": 1}}
        method = tiny.method.model_copy(update={"name": "lora", "options": last, "roles": {}})
        data = tiny.data.model_copy(update={"augment": ()})  # in two rounds it would not pay to keep all views
        tiny = tiny.model_copy(update={"method": method, "data": data})
    sites = load_sites(tiny, site.model_copy(update={"cache": str(tmp_path)}), ["a", "b"])

    def train(compiled: bool):
        trainer = LocalTrainer(tiny, tiny_weights, CPU, compiled=compiled)
        return [trainer.train("a", sites["a"].train, {}, number).tensors for number in (0, 1)]

    return train


def test_a_compiled_model_trains_the_same(trained, monkeypatch, request):
    """With torch's own capture and without a compiler behind it, which takes a minute."""
    compiled, made = torch.compile, []

    def compile_(module):
        made.append(module)
        return compiled(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_)
    for found, expected in zip(trained(True), trained(False), strict=True):
        assert greatest_difference(found, expected) <= 1e-6
    assert [isinstance(one, torch.nn.Module) for one in made] == [request.node.callspec.params["trained"] == "images"]


def test_a_model_is_compiled_once_for_images_that_are_turned(tiny, tiny_weights, site, tmp_path, monkeypatch):
    experiment = tiny.model_copy(update={"data": tiny.data.model_copy(update={"augment": ("flip", "rotate90")})})
    images = load_sites(experiment, site.model_copy(update={"cache": str(tmp_path)}), ["a", "b"])["a"].train
    strides = set()

    def compile_(module):
        def call(images):
            strides.add(images.stride())
            return module(images)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    LocalTrainer(experiment, tiny_weights, CPU, compiled=True).train("a", images, {}, 0)
    size = experiment.backbone.image_size
    assert strides == {(3 * size * size, size * size, size, 1)}


def test_a_model_that_cannot_be_compiled_trains_as_it_is(trained, monkeypatch, caplog):
    def fails(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fails))
    found, expected = trained(True), trained(False)
    assert all(np.array_equal(one[key], other[key]) for one, other in zip(found, expected, strict=True) for key in one)
    warnings = [record.message for record in caplog.records if "cannot be compiled" in record.message]
    assert len(warnings) == 1
    assert "no compiler" in warnings[0]
