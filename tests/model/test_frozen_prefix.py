"""What the frozen part of a model makes of images is computed once, and training from there is the same training."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pt_peft
from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import ROOT, changed
from pt_peft.code_key import code_key
from pt_peft.data import features
from pt_peft.data.site_data import SiteData
from pt_peft.model import method as method_module
from pt_peft.model.adapted_model import build_model
from pt_peft.model.frozen_prefix import FrozenPrefix, frozen_prefix

NAMES = ["site-1", "site-2"]
LAST = {"name": "lora", "options": {"lora": {"last_blocks": 1}}}
PROBE = {"name": "linear_probe", "options": {}}
BOTH = {"name": "lora_vpt", "options": {"lora": {"last_blocks": 1}, "vpt_deep": {"last_blocks": 1, "num_prompts": 3}}}
PLAIN = {"augment": []}


@pytest.fixture
def cached_site(site, tmp_path):
    return site.model_copy(update={"cache": str(tmp_path / "cache")})


def not_cached(sites: dict[str, SiteData]) -> dict[str, SiteData]:
    """The same images from no cache, for which no features can be kept."""
    splits = ("train", "val", "test")
    return {
        name: SiteData(*(replace(getattr(data, split), cached=None) for split in splits))
        for name, data in sites.items()
    }


def kept(site) -> list[Path]:
    return sorted(Path(site.cache).glob("*/features.npy"))


@pytest.mark.parametrize(
    ("method", "backbone", "blocks"),
    [
        (PROBE, {}, "all"),
        (LAST, {}, 1),
        ({"name": "norm", "options": {}}, {}, None),
        ({"name": "lora", "options": {}}, {}, None),
        ({"name": "vpt_shallow", "options": {}}, {}, None),
        ({"name": "vpt_deep", "options": {"vpt_deep": {"last_blocks": 1}}}, {}, 1),
        (BOTH, {}, 1),
        ({"name": "lora_vpt", "options": {"lora": {"last_blocks": 1}}}, {}, None),  # prompts in all blocks
        ({"name": "full", "options": {}}, {}, None),
        ({"name": "lora", "options": {"lora": {"last_blocks": 1}}, "roles": {"*": "frozen"}}, {}, 1),
        (LAST, {"kwargs": {"proj_drop_rate": 0.1}}, None),
        (LAST, {"kwargs": {"drop_path_rate": 0.1}}, 1),  # timm's first block has none of it
        (PROBE, {"kwargs": {"drop_path_rate": 0.1}}, None),
        (PROBE, {"kwargs": {"drop_rate": 0.1}}, "all"),  # before the head
        (PROBE, {"name": "eva02_tiny_patch14_224", "kwargs": {"patch_size": 8}}, "all"),
        (LAST, {"name": "eva02_tiny_patch14_224", "kwargs": {"patch_size": 8}}, None),
    ],
)
def test_what_is_frozen(tiny, method, backbone, blocks):
    fields = {**tiny.backbone.model_dump(mode="json"), **backbone}
    fields["kwargs"] = {**({} if "name" in backbone else tiny.backbone.kwargs), **backbone.get("kwargs", {})}
    prefix = frozen_prefix(build_model(changed(tiny, method=method, backbone=fields).model, None))
    assert (prefix and ("all" if prefix.blocks is None else prefix.blocks)) == blocks


@pytest.mark.parametrize("method", [PROBE, LAST, BOTH])
@pytest.mark.parametrize("training", [{}, {"precision": "bfloat16"}, {"ditto": 0.1, "imbalance": "weighted_sampler"}])
def test_it_is_the_same_training(tiny, cached_site, method, training):
    experiment = changed(tiny, method=method, data=PLAIN, training=training)
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, NAMES)
    without = federate(trainer, not_cached(sites))
    assert not kept(cached_site)
    cold = federate(trainer, sites)
    assert len(kept(cached_site)) == 2  # of the training images; nothing was evaluated
    tolerance = 1e-2 if training.get("precision") else 1e-6
    for key, value in cold.tensors.items():
        np.testing.assert_allclose(value, without.tensors[key], rtol=0, atol=tolerance, err_msg=key)
    for again in ("warm", "damaged", "deleted"):
        if again == "damaged":
            kept(cached_site)[0].write_bytes(kept(cached_site)[0].read_bytes()[:-4])
        elif again == "deleted":
            shutil.rmtree(cached_site.cache)
            sites = load_sites(experiment, cached_site, NAMES)
        other = federate(make_trainer(experiment, cached_site), sites)
        for key, value in cold.tensors.items():
            np.testing.assert_array_equal(value, other.tensors[key], err_msg=f"{again}: {key}")


def test_metrics_are_the_same_too(tiny, cached_site):
    experiment = changed(tiny, method=LAST, data=PLAIN)
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, NAMES)
    found = trainer.predict(trainer.initial, sites["site-1"].val)[0]
    assert len(kept(cached_site)) == 1
    without = trainer.predict(trainer.initial, not_cached(sites)["site-1"].val)[0]
    np.testing.assert_allclose(found, without, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": {"augment": ["intensity"]}, "federation": {"rounds": 20}},
        {"data": {"augment": ["flip", "intensity"]}, "federation": {"rounds": 20}},
        {"data": {"augment": ["flip"]}, "federation": {"rounds": 3}},  # fewer passes than views
        {"data": PLAIN, "privacy": {"sample": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}}},
    ],
)
def test_where_features_do_not_pay_or_images_are_drawn_in_secret_there_are_none(tiny, cached_site, fields):
    experiment = changed(tiny, method=PROBE, **fields)
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, NAMES)
    trainer.train("site-1", sites["site-1"].train, trainer.initial, 0)
    assert not kept(cached_site)


def test_each_model_and_each_split_has_its_own(tiny, cached_site):
    sizes = []
    for fields in (
        {},
        {"backbone": {"mean": [0.4, 0.4, 0.4]}},
        {"method": LAST},
        {"training": {"precision": "bfloat16"}},
    ):
        experiment = changed(tiny, **{"method": PROBE, "data": PLAIN, **fields})
        trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, ["site-1"])
        for split in ("train", "val"):
            trainer.predict(trainer.initial, getattr(sites["site-1"], split))
        sizes.append(len(kept(cached_site)))
    assert sizes == [2, 4, 6, 8]


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"backbone": {"std": [0.4, 0.4, 0.4]}},
        {"backbone": {"allow_unused": ["x"]}},
        {"method": LAST},
        {"training": {"precision": "bfloat16"}},
    ],
)
def test_the_key_holds_what_the_experiment_says_of_the_model(tiny, cached_site, fields):
    keys = [key_of(make_trainer(changed(tiny, **{"method": PROBE, **one}), cached_site)) for one in ({}, fields)]
    assert keys[0] != keys[1]


def test_the_key_holds_how_it_is_computed(tiny, cached_site, monkeypatch):
    trainer = make_trainer(changed(tiny, method=PROBE), cached_site)
    before = key_of(trainer)
    monkeypatch.setattr("torch.get_num_threads", lambda: 9)
    threads = key_of(trainer)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: device.type)
    trainer.device = torch.device("cuda")
    assert len({before, threads, key_of(trainer)}) == 3


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("methods/linear_probe.py", True),
        ("model/vit.py", True),
        ("data/table.py", False),
        ("commands/export.py", False),
    ],
)
def test_the_key_holds_the_code(tiny, cached_site, tmp_path, monkeypatch, file, changes):
    trainer = make_trainer(changed(tiny, method=PROBE), cached_site)
    before = key_of(trainer)
    shutil.copytree(ROOT / "pt_peft", tmp_path / "pt_peft", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pt_peft, "__path__", [str(tmp_path / "pt_peft")])
    assert key_of(trainer) == before
    (tmp_path / "pt_peft" / file).write_text((tmp_path / "pt_peft" / file).read_text() + "# changed\n")
    assert (key_of(trainer) != before) == changes


CUSTOM = """
from pt_peft.model.method import PeftMethod
from pt_peft.schema import Strict


def inject(model, config):
    # Changes the frozen part, which it should not; trains nothing but the head.
    model.blocks[0].register_forward_hook(lambda block, args, tokens: tokens * 2)


METHOD = PeftMethod(
    name="custom", summary="", paper="", config=Strict, inject=inject, identity_at_start=False, merge=None,
    learning_rate=1e-3,
)
"""


def test_the_key_holds_a_custom_method_in_another_folder(tiny, cached_site, tmp_path, monkeypatch):
    """Changed at the same version, and none of the package's files."""
    (tmp_path / "a_labs_method.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(method_module._REGISTRY, "custom", importlib.import_module("a_labs_method").METHOD)
    trainer = make_trainer(changed(tiny, method={"name": "custom", "options": {}}), cached_site)
    before = key_of(trainer)
    (tmp_path / "a_labs_method.py").write_text(CUSTOM.replace("* 2", "* 3"))
    assert key_of(trainer) != before


def key_of(trainer) -> str:
    """The key of the features, as in a new process."""
    code_key.cache_clear()
    importlib.invalidate_caches()
    try:
        return json.dumps(trainer._features_key(trainer._prefix), sort_keys=True)
    finally:
        code_key.cache_clear()


def test_a_cache_that_is_too_small_costs_time_alone(tiny, cached_site, caplog):
    experiment = changed(tiny, method=LAST, data=PLAIN)
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, ["site-1"])
    images = sites["site-1"].train
    assert images.cached
    expected = trainer.train("site-1", images, trainer.initial, 0).tensors
    (made,) = kept(cached_site)
    needed = images.images.nbytes + 40 * 17 * 32 * 4  # both, without the file's header
    shutil.rmtree(made.parent)
    for too_little in (0.99 * needed, 0.5 * images.images.nbytes):
        place = replace(images.cached, limit_gb=too_little / 1e9)
        found = trainer.train("site-1", replace(images, cached=place), trainer.initial, 0).tensors
        assert "computed anew each time" in caplog.text
        assert "cache_gb" in caplog.text
        assert not kept(cached_site)
        assert images.cached.entry.is_dir()
        caplog.clear()
    for key, value in expected.items():
        np.testing.assert_allclose(value, found[key], rtol=0, atol=1e-6)


def test_it_is_computed_once(tiny, cached_site, monkeypatch):
    counted = []
    compute = FrozenPrefix.features

    def counting(self, pixels, **settings):
        counted.append(len(pixels))
        return compute(self, pixels, **settings)

    monkeypatch.setattr(FrozenPrefix, "features", counting)
    monkeypatch.setattr(features, "BATCH", 16)
    experiment = changed(tiny, method=PROBE, data=PLAIN, federation={"rounds": 3})
    federate(make_trainer(experiment, cached_site), load_sites(experiment, cached_site, NAMES))
    assert counted == [1, 16, 16, 8] * len(NAMES)  # the first tells the shape


VIEWS = {"data": {"augment": ["flip", "rotate90"]}, "training": {"local_epochs": 4}}
"""Two rounds of four epochs pass over the images as often as they have views."""


@pytest.mark.parametrize("method", [PROBE, LAST])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float16, 2e-3)])
def test_training_on_the_features_of_all_views_is_training_on_augmented_images(
    tiny, cached_site, monkeypatch, method, dtype, tolerance
):
    monkeypatch.setattr(features, "dtype_of", lambda views: np.dtype(dtype))
    experiment = changed(tiny, method=method, **VIEWS)
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, NAMES)
    without = federate(trainer, not_cached(sites))
    assert not kept(cached_site)
    found = federate(trainer, sites)
    assert [np.load(path, mmap_mode="r").shape[:2] for path in kept(cached_site)] == [(40, 8)] * 2
    for key, value in found.tensors.items():
        np.testing.assert_allclose(value, without.tensors[key], rtol=0, atol=tolerance, err_msg=key)
    again = federate(make_trainer(experiment, cached_site), sites)
    for key, value in found.tensors.items():
        np.testing.assert_array_equal(value, again.tensors[key], err_msg=key)


@pytest.mark.parametrize("method", [PROBE, LAST])
@pytest.mark.parametrize("augment", [["flip", "rotate90"], ["rotate90"]])
def test_logits_of_the_features_of_a_view(tiny, cached_site, method, augment):
    """Each batch has the same images in the same views; logits are apart by what float16 rounds."""
    experiment = changed(tiny, method=method, data={"augment": augment}, training={"local_epochs": 4})
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, NAMES)
    images = sites["site-1"].train
    kept_features = trainer._with_features(images, trainer._views())
    assert kept_features is not images
    assert trainer._prefix
    for (one, labels), (other, same) in zip(
        *(trainer._batches(split, "site-1", 1, 2, secret=False) for split in (images, kept_features)), strict=True
    ):
        assert torch.equal(labels, same)
        exact, halved = trainer._forward(images)(one), trainer._forward(kept_features)(other)
        np.testing.assert_allclose(halved.detach(), exact.detach(), rtol=0, atol=2e-3)
        own = trainer._prefix.features((one * 255).round().byte().numpy(), trainer._normalise, "float32")
        np.testing.assert_allclose(other, own, rtol=2**-11, atol=1e-5)


def test_views_that_do_not_all_fit_are_not_kept(tiny, cached_site, caplog):
    experiment = changed(tiny, method=LAST, **VIEWS)
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, ["site-1"])
    images = sites["site-1"].train
    assert images.cached
    seven = images.images.nbytes + 7 * 40 * 17 * 32 * 2
    small = replace(images, cached=replace(images.cached, limit_gb=seven / 1e9))
    trainer.train("site-1", small, trainer.initial, 0)
    assert "those of 8 views take 0.00 GB beside the images" in caplog.text
    assert not kept(cached_site)


def test_values_beyond_half_precision_are_not_kept(tiny, cached_site, caplog, monkeypatch):
    compute = FrozenPrefix.features
    monkeypatch.setattr(FrozenPrefix, "features", lambda *args, **settings: compute(*args, **settings) * 1e6)
    experiment = changed(tiny, method=PROBE, **VIEWS)
    trainer, sites = make_trainer(experiment, cached_site), load_sites(experiment, cached_site, ["site-1"])
    trainer.train("site-1", sites["site-1"].train, trainer.initial, 0)
    assert "is beyond float16" in caplog.text
    assert not kept(cached_site)
