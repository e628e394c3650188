"""What a site allows by default: a job that rebuilds an image is refused by each of several limits alone."""

import json
import resource
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import JOBS, changed
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.limits import FULL, GB, METHODS, Limits, is_embedding
from pt_peft.experiment.site import Site
from pt_peft.files import sha256_of
from pt_peft.model import method
from pt_peft.model.adapted_model import build_model
from pt_peft.model.backbone import EMBEDDED
from pt_peft.model.method import PeftMethod, method_names, nothing_to_merge
from pt_peft.model.planned_exchange import planned_exchange
from pt_peft.presets import committed_jobs, demo, embedded_backbone, override
from pt_peft.schema import Strict, parse
from pt_peft.training.footprint import check_model, footprint, model_refusals
from pt_peft.worker.request_handler import RequestHandler
from pt_peft.worker.requests import Opening

KWARGS = embedded_backbone().kwargs
SITES = ("a", "b")
ONE_PATCH = {"backbone": {"kwargs": {**KWARGS, "patch_size": 64}}}
HOLE = {
    **ONE_PATCH,
    "data": {"images_per_site": {"train": 1, "val": 1, "test": 1}, "augment": []},
    "method": {"name": "full", "options": {}},
    "training": {"control_variates": True, "batch_size": 1, "local_epochs": 1},
    "federation": {"rounds": 1, "min_sites": 1, "sites": ["a"]},
}
"""What rebuilt an image exactly: one image, in one patch, all of the model, mean gradients, one site."""
NAMES = ("naevus", "melanoma", "basal_cell_carcinoma", "dermatofibroma", *(f"none {index}" for index in range(96)))
DROPOUT = {
    "backbone": {
        "image_size": 32,
        "kwargs": {**KWARGS, "depth": 1, "global_pool": "avg", "final_norm": False, "fc_norm": False}
        | {"proj_drop_rate": 0.99, "pos_drop_rate": 0.8},
        "allow_unused": ["norm.*", "blocks.*"],
    },
    "data": {"classes": NAMES, "images_per_site": {"train": 50, "val": 16, "test": 16}, "augment": []},
    "training": {"batch_size": 4096, "local_epochs": 2, "learning_rate": 1e-4, "head_learning_rate": 1e-4},
    "federation": {"rounds": 1000, "sites": ["a", "b", "c"]},
}
"""What rebuilt images of a rare class among fifty by known masks of dropout: the head sees patches that no block has
changed, each round another known part of them."""
PEFT = "lora"
"""Accepted by default; what differs from it in one point is refused by that point."""


def ask(experiment, limits, weights=EMBEDDED, sites=SITES, apps=1):
    """All that a site asks its limits before it trains."""
    limits.check(experiment)
    limits.check_deployment(experiment, sites, apps)
    check_model(experiment, limits, lambda: weights, trains=True)
    limits.check_images(experiment, experiment.data.images_per_site["train"])


def refusal(*arguments, **options) -> OutsideLimits:
    with pytest.raises(OutsideLimits) as error:
        ask(*arguments, **options)
    return error.value


@pytest.mark.parametrize("name", committed_jobs())
def test_the_jobs_of_the_repository_are_allowed(name):
    experiment = Experiment.read(JOBS / name / "app" / "config" / "experiment.json")
    limits = Limits()
    if name == FULL:
        assert refusal(experiment, limits).field == "methods"
        limits = Limits(methods=(FULL,))
    ask(experiment, limits)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_base_patch16_224", 224), ("vit_base_patch32_224", 224), ("vit_small_patch14_dinov2", 518)]
)
def test_published_backbones_are_allowed(name, size):
    experiment = changed(demo("lora_vpt")[0], backbone={"name": name, "kwargs": {}, "image_size": size})
    check_model(experiment, Limits(), None, trains=True)


@pytest.mark.parametrize(
    "field",
    [
        *("methods", "min_train_images", "min_steps", "min_sites", "control_variates", "min_patches"),
        "pinned_backbone",
    ],
)
def test_each_of_these_alone_refuses_the_job_that_rebuilt_an_image(field):
    hole = changed(demo("full")[0], **HOLE)
    alone = Limits.open().model_copy(update={field: getattr(Limits(), field)})
    assert refusal(hole, alone, sites=("a",)).field == field
    assert refusal(hole, Limits(), sites=("a",)).field == "methods"
    ask(hole, Limits.open(), sites=("a",))


@pytest.mark.parametrize("field", ["backbone_kwargs", "pinned_backbone"])
def test_each_of_these_alone_refuses_the_job_that_knew_the_masks(field):
    """The third mend, `secret_draws`, lets it run and blurs it: see `test_secret_draws`."""
    job, sites = changed(demo("linear_probe")[0], **DROPOUT), ("a", "b", "c")
    alone = Limits.open().model_copy(update={field: getattr(Limits(), field)})
    assert refusal(job, alone, sites=sites).field == field
    assert refusal(job, Limits(min_sites=3), sites=sites).field == "backbone_kwargs"
    both = Limits().model_copy(update={"backbone_kwargs": None, "pinned_backbone": None})
    ask(job, both, sites=sites)


@pytest.mark.parametrize(
    ("kwargs", "asked"),
    [
        ({"drop_rate": 0.1}, "'drop_rate' in backbone.kwargs"),
        ({"final_norm": False}, "'final_norm' in backbone.kwargs"),
        ({"fc_norm": True}, "'fc_norm' in backbone.kwargs"),
        ({"global_pool": "avg"}, "'global_pool' in backbone.kwargs"),
        ({"depth": 5}, "a model without tensor 'blocks.5."),
        ({"qkv_bias": False}, "a model without tensor 'blocks.0.attn.qkv.bias'"),
        ({"pre_norm": True}, "tensor 'norm_pre.weight' from the seed"),
    ],
)
def test_what_pinned_weights_compute_is_pinned(kwargs, asked):
    excused = {"kwargs": {**KWARGS, **kwargs}, "allow_missing": ["*"], "allow_unused": ["*"]}
    job = changed(demo(PEFT)[0], backbone=excused)
    assert refusal(job, Limits()).asked.startswith(asked)
    ask(job, Limits(backbone_kwargs=None, pinned_backbone=None))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"patch_size": [1, 64]}, "'patch_size' must be a whole number of 1 or more"),
        ({"depth": True}, "'depth' must be a number of blocks from 1 to 256"),
        ({"mlp_ratio": "4"}, "'mlp_ratio' must be a number above 0"),
        ({"qkv_bias": {"a": 1}}, "'qkv_bias' must be true or false"),
        ({"global_pool": ""}, "'global_pool' must be 'token'"),
        ({"global_pool": None}, "'global_pool' must be 'token'"),
        ({"pos_drop_rate": 1.0}, "'pos_drop_rate' must be a number from 0 to below 1"),
    ],
)
def test_types_of_arguments(kwargs, named):
    with pytest.raises(UserError, match=named):
        override(demo(PEFT)[0], [f"backbone.kwargs={json.dumps({**KWARGS, **kwargs})}"])


def test_patches_of_another_shape_and_the_same_size(tmp_path):
    """timm resamples them, so that the model's would not be the file's."""
    state = load_file(EMBEDDED)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(96, 3, 4, 16).contiguous()
    weights = tmp_path / "weights.safetensors"
    save_file(state, weights)
    job = changed(demo(PEFT)[0], backbone={"sha256": sha256_of(weights)})
    assert refusal(job, Limits(), weights).asked == "another patch size"


@pytest.mark.parametrize(
    ("ranks", "quorum", "limit", "asked"),
    [
        ({"b": 1, "c": 1}, 3, 2, "components of federation.lora_ranks that 1 site(s) train"),
        ({"b": 1, "c": 1}, 3, 3, "components of federation.lora_ranks that 1 site(s) train"),
        ({"c": 1}, 2, 2, "components of federation.lora_ranks that 1 site(s) train in a round"),
        ({"c": 1}, 3, 3, "components of federation.lora_ranks that 2 site(s) train"),
        ({"a": 2, "b": 2, "c": 1}, 3, 2, None),
        ({"a": 3, "b": 2, "c": 1}, 3, 2, "components of federation.lora_ranks that 1 site(s) train"),
        ({"c": 1}, 3, 2, None),
        ({"b": 1, "c": 1}, 3, None, None),
        ({"b": 1, "c": 1}, 3, 1, None),
    ],
)
def test_components_that_too_few_sites_train(ranks, quorum, limit, asked):
    """What one site alone trains is read off the mean."""
    federation = {"lora_ranks": ranks, "min_sites": quorum, "sites": ["a", "b", "c"]}
    job, limits = changed(demo(PEFT)[0], federation=federation), Limits(min_sites=limit)
    if asked is None:
        limits.check_deployment(job, ("a", "b", "c"), 1)
        return
    with pytest.raises(OutsideLimits) as error:
        limits.check_deployment(job, ("a", "b", "c"), 1)
    assert (error.value.field, error.value.asked) == ("min_sites", asked)


def test_sites_that_the_job_leaves_out_do_not_count():
    job = changed(demo(PEFT)[0], federation={"sites": ["a", "b"]})
    Limits(min_sites=2).check_deployment(job, ("a", "b", "c"), 1)
    with pytest.raises(OutsideLimits, match="a job in which 2 of its sites take part; allowed: at least 3"):
        Limits(min_sites=3).check_deployment(job, ("a", "b", "c"), 1)


@pytest.mark.parametrize(
    ("field", "message", "fields"),
    [
        ("methods", "it asks for method full; allowed: adaptformer, bitfit", {"method": {"name": "full"}}),
        ("min_train_images", "a round on 1 training image(s); allowed: at least 50", {"data": 1}),
        ("min_train_images", "a round on 49 training image(s); allowed: at least 50", {"data": 49}),
        ("min_steps", "a round of 1 step(s); allowed: at least 2", {"training": {"batch_size": 384}}),
        (
            "min_sites",
            "1 sites in federation.min_sites; allowed: at least 2",
            {"federation": {"min_sites": 1}, "aggregation": {"name": "mean"}},
        ),
        ("control_variates", "training.control_variates; they are mean", {"training": {"control_variates": True}}),
        ("min_patches", "images of 1 patch(es); allowed: at least 16", ONE_PATCH),
        ("min_patches", "images of 4 patch(es)", {"backbone": {"kwargs": {**KWARGS, "patch_size": 32}}}),
        (
            "pinned_backbone",
            "another patch size; allowed: that of the weights file",
            {"backbone": {"kwargs": {**KWARGS, "patch_size": 16}}},
        ),
        (
            "backbone_kwargs",
            "'patch_drop_rate' in backbone.kwargs",
            {"backbone": {"kwargs": {**KWARGS, "patch_drop_rate": 0.98}}},
        ),
        ("pinned_backbone", "tensor 'patch_embed.frame_columns'", {"method": {"name": "pixel_prompt"}}),
        ("max_rounds", "1001 rounds; allowed: 1000", {"federation": {"rounds": 1001}}),
        ("max_local_epochs", "101 local epochs; allowed: 100", {"training": {"local_epochs": 101}}),
        (
            "max_round_seconds",
            "a site_timeout_s of 21601",
            {"federation": {"site_timeout_s": 21_601, "round_timeout_s": 21_601}},
        ),
        ("max_job_seconds", "a round_timeout_s of 604801", {"federation": {"round_timeout_s": 604_801}}),
        ("max_memory_gb", "GB of memory; allowed: 16", {"training": {"batch_size": 4096}, "backbone": 512}),
    ],
)
def test_a_job_that_differs_in_one_point_is_refused(field, message, fields):
    if isinstance(fields.get("data"), int):
        fields = {"data": {"images_per_site": {"train": fields["data"], "val": 16, "test": 16}}}
    if isinstance(fields.get("backbone"), int):
        fields = {**fields, "backbone": {"image_size": fields["backbone"]}}
    error = refusal(changed(demo(PEFT)[0], **fields), Limits())
    assert error.field == field
    assert message in str(error)
    assert f"by field '{field}' of its limits: it asks for {error.asked}; {error.allowed}" in str(error)


@pytest.mark.parametrize(("sites", "apps"), [(("a",), 1), ((), 1), (SITES, 2)])
def test_a_job_that_others_do_not_get_is_refused(sites, apps):
    """Some sites could be given an app in which they fail, or the server one with another quorum."""
    assert refusal(demo(PEFT)[0], Limits(), sites=sites, apps=apps).field == "min_sites"
    ask(demo(PEFT)[0], Limits(min_sites=None), sites=sites, apps=apps)


def test_a_federation_of_three_can_spare_one_site():
    limits = Limits(min_sites=3)
    ask(changed(demo(PEFT)[0], federation={"min_sites": 2}), limits, sites=("a", "b", "c"))
    assert refusal(demo(PEFT)[0], limits, sites=("a", "b")).asked == "a job that is deployed to 2 site(s)"
    assert refusal(changed(demo(PEFT)[0], federation={"min_sites": 1}), limits).field == "min_sites"


def test_three_steps_of_fifty_images_and_what_a_batch_leaves_over():
    experiment = changed(demo(PEFT)[0], training={"batch_size": 49})
    Limits().check_images(experiment, 50)
    with pytest.raises(OutsideLimits, match=r"1 step\(s\)"):
        Limits().check_images(changed(experiment, training={"batch_size": 50}), 50)
    Limits().check_images(changed(experiment, training={"batch_size": 50, "local_epochs": 2}), 50)
    private = {"sample": {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}}
    with pytest.raises(OutsideLimits, match=r"1 step\(s\)"):
        Limits().check_images(changed(experiment, training={"batch_size": 50}, privacy=private), 50)


class Nothing(Strict):
    """No options."""


@pytest.fixture
def thief(monkeypatch):
    """A method that trains what it is told to, under a name that says something else."""
    trained: list[str] = []

    def inject(model: nn.Module, config: Nothing) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)

    record = PeftMethod(
        name="harmless", summary="", paper="", config=Nothing, inject=inject, identity_at_start=True,
        merge=nothing_to_merge, learning_rate=1e-3, trains_backbone=True,
    )  # fmt: skip
    method_names()
    monkeypatch.setitem(method._REGISTRY, "harmless", record)
    return trained


@pytest.mark.parametrize("key", ["pos_embed", "cls_token"])
def test_no_method_trains_embeddings_whatever_its_name_is(thief, key):
    thief.append(key)
    experiment = changed(demo(PEFT)[0], method={"name": "harmless"})
    limits = Limits(methods=("harmless",))
    error = refusal(experiment, limits)
    assert (error.field, error.asked) == ("pinned_backbone", f"training of tensor '{key}'")
    for role in ("local", "frozen"):  # what does not leave may train
        ask(changed(experiment, method={"roles": {key: role}}), limits)
    ask(experiment, Limits(methods=("harmless",), pinned_backbone=None))
    exchange = planned_exchange(
        build_model(experiment.model, None), changed(experiment, training={"control_variates": True})
    )
    both = Limits(methods=("harmless",), control_variates=None)
    with pytest.raises(OutsideLimits, match=f"training of tensor '{key}'"):
        both.check_exchange(experiment, exchange)


def test_full_trains_embeddings_only_where_it_is_listed():
    full = demo("full")[0]
    ask(full, Limits(methods=("full", "lora")))
    assert refusal(full, Limits(methods=None)).field == "pinned_backbone"
    ask(full, Limits(methods=None, pinned_backbone=None))
    frozen = {"roles": {"patch_embed.*": "frozen", "pos_embed": "frozen", "cls_token": "frozen"}}
    assert refusal(changed(full, method=frozen), Limits()).field == "methods"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bitfit", {}),
        ("ssf", {}),
        ("norm", {}),
        ("vpt_deep", {"vpt_deep": {"num_prompts": 50}}),
        ("lora", {"lora": {"rank": 96}}),
        ("sba", {"sba": {"blocks_per_round": 6}}),
    ],
)
def test_what_may_train(name, options):
    """Vectors at the patch embedding get a sum over all patches of all images, and so do layers inside the blocks, in
    full as at full rank: nothing else that travels tells the places apart that are summed."""
    experiment = changed(demo(name)[0], method={"options": options})
    ask(experiment, Limits())


def test_the_list_of_methods_is_that_of_the_package():
    assert {*METHODS, FULL} == {*method_names()}


@pytest.mark.parametrize(
    ("key", "shape", "found"),
    [
        ("patch_embed.proj.weight", (96, 3, 8, 8), True),
        ("patch_embed.proj.bias", (96,), False),
        ("pos_embed", (1, 65, 96), True),
        ("reg_token", (1, 4, 96), True),
        ("dist_token", (1, 1, 96), True),
        ("blocks.0.attn.qkv.lora_A", (4, 96), False),
        ("blocks.0.prompts", (10, 96), False),
        ("norm.weight", (96,), False),
        ("head.weight", (4, 96), False),
    ],
)
def test_what_counts_as_an_embedding(key, shape, found):
    assert is_embedding(key, shape) == found


@pytest.fixture
def lacking(tmp_path):
    """The embedded weights without some tensors, and the experiment that asks the seed for them."""

    def make(*keys: str):
        state = {key: value for key, value in load_file(EMBEDDED).items() if key not in keys}
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
        return path, changed(demo(PEFT)[0], backbone={"allow_missing": list(keys), "sha256": sha256_of(path)})

    return make


@pytest.mark.parametrize("key", ["pos_embed", "cls_token"])
def test_embeddings_that_are_not_in_the_weights(lacking, key):
    weights, experiment = lacking(key)
    error = refusal(experiment, Limits(), weights)
    assert (error.field, error.asked) == ("pinned_backbone", f"tensor '{key}' from the seed")
    ask(experiment, Limits(pinned_backbone=None), weights)
    weights, experiment = lacking("norm.weight", "patch_embed.proj.bias")
    assert refusal(experiment, Limits(), weights).field == "pinned_backbone"
    weights, experiment = lacking("head.weight", "head.bias")
    ask(experiment, Limits(), weights)


def test_the_whole_rank_is_not_fewer():
    federation = {"lora_ranks": {"a": 4, "b": 4}, "min_sites": 3, "sites": ["a", "b", "c"]}
    job = changed(demo("lora")[0], method={"name": "lora", "options": {"lora": {"rank": 4}}}, federation=federation)
    Limits(min_sites=3).check_deployment(job, ("a", "b", "c"), 1)
    more = changed(job, method={"options": {"lora": {"rank": 5}}})
    with pytest.raises(OutsideLimits, match=r"components of federation\.lora_ranks that 1 site"):
        Limits(min_sites=3).check_deployment(more, ("a", "b", "c"), 1)


HOSTILE = {
    "depth and width": {"backbone": {"kwargs": {**KWARGS, "depth": 256, "embed_dim": 3072}}},
    "width": {"backbone": {"kwargs": {**KWARGS, "embed_dim": 3 * 10**6}}},
    "MLP": {"backbone": {"kwargs": {**KWARGS, "mlp_ratio": 1e9}}},
    "register tokens": {"backbone": {"kwargs": {**KWARGS, "reg_tokens": 10**9}}},
    "pixels": {"backbone": {"image_size": 1024}},
    "patches": {"backbone": {"image_size": 1024, "kwargs": {**KWARGS, "patch_size": 1}}},
    "batch": {"training": {"batch_size": 4096}, "backbone": {"image_size": 512}},
    "prompts": {"method": {"name": "vpt_deep", "options": {"vpt_deep": {"num_prompts": 1000}}}},
    "rank": {
        "method": {"options": {"lora": {"rank": 1024, "targets": ["qkv", "proj", "fc1", "fc2"]}}},
        "backbone": {"kwargs": {**KWARGS, "depth": 256, "embed_dim": 1536}},
    },
    "a tuner that looks at values": {
        "method": {"name": "waveft", "options": {"waveft": {"coefficients": 10**7}}},
        "backbone": {"kwargs": {**KWARGS, "depth": 256, "embed_dim": 3072}},
    },
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_job_that_would_take_all_of_a_machine_is_refused_before_it_takes_any(what):
    experiment = changed(demo(PEFT)[0], **{"training": {"batch_size": 4096}, **HOSTILE[what]})
    check_model(demo(PEFT)[0], Limits(), lambda: EMBEDDED, trains=True)  # what is loaded once
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    limits = Limits(max_memory_gb=4.0)
    with pytest.raises(OutsideLimits, match=r"'max_memory_gb' of its limits: it asks for .* GB of memory; allowed: 4"):
        check_model(experiment, limits, lambda: EMBEDDED, trains=True)
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"
    with pytest.raises(UserError, match="cannot be built"):
        check_model(
            changed(experiment, backbone={"kwargs": {"embed_dim": 3 * 10**18}}), limits, lambda: EMBEDDED, trains=True
        )


def test_the_memory_that_is_told_is_that_of_a_step():
    """What torch keeps for the backward pass on the CPU, image by image."""
    experiment = changed(demo("full")[0], training={"batch_size": 1024})
    model = build_model(experiment.model, None)

    def kept(images: int) -> int:
        found = [0]

        def keep(tensor):
            found.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.module(torch.zeros(images, 3, 64, 64))
        return sum(found)

    tensors = sum(parameter.nbytes for parameter in model.module.parameters())
    told = footprint(model.module, experiment, "meta")
    assert told.patches == 64
    assert told.memory - 5 * tensors == pytest.approx(1024 * (kept(6) - kept(2)) / 4, rel=0.05)


def test_a_frozen_backbone_counts_as_frozen():
    """Gradients and the optimiser's state are of what trains: LoRA may be allowed where full fine-tuning is not."""
    kwargs = {**KWARGS, "depth": 24, "embed_dim": 768, "num_heads": 12}
    lora, full = (
        changed(demo(name)[0], backbone={"kwargs": kwargs}, training={"batch_size": 8}) for name in (PEFT, "full")
    )
    needed = footprint(build_model(lora.model, None).module, lora, "meta").memory
    limits = Limits(max_memory_gb=1.2 * needed / 1e9)
    assert not [*model_refusals(lora, limits, None, trains=True)]
    assert [*model_refusals(full, limits, None, trains=True)]


@pytest.fixture
def opened(tiny, tiny_weights, tmp_path):
    """A worker of a site with given limits, for the tiny job with some of its fields changed."""

    def make(limits: Limits, **fields) -> RequestHandler:
        handler = RequestHandler()
        site = Site(backbone=str(tiny_weights), cache=str(tmp_path / "cache"), limits=limits)
        opening: Opening = {
            "experiment": changed(tiny, **fields).model_dump(mode="json"), "site": site.model_dump(mode="json"),
            "name": "a", "names": list(SITES), "run_dir": str(tmp_path / "job"), "continues": None, "threads": 1,
        }  # fmt: skip
        (tmp_path / "job").mkdir(exist_ok=True)
        handler.open(opening, {})
        return handler

    return make


def start(handler: RequestHandler):
    return handler.train({"round": 0, "since": 0}, handler.initial_state({}, {})[1])


def test_a_worker_refuses_before_it_trains(opened):
    with pytest.raises(OutsideLimits, match="a round on 40 training"):
        start(opened(Limits()))
    report, _ = start(opened(Limits(min_train_images=40)))
    assert report["num_samples"] == 40
    with pytest.raises(OutsideLimits, match="a round on 12 training"):
        start(opened(Limits(min_train_images=40), data={"images_per_site": {"train": 12, "val": 16, "test": 16}}))
    for request in ("exchange", "initial_state"):
        with pytest.raises(OutsideLimits, match="method lora_vpt; allowed: norm"):
            getattr(opened(Limits(methods=("norm",))), request)({}, {})


def test_metrics_of_few_images_do_not_leave(opened):
    handler = opened(Limits(min_train_images=40, min_evaluated_images=17))
    payload = handler.initial_state({}, {})[1]
    assert start(handler)[0]["val"] is None
    reply, _ = handler.evaluate({"round": 0, "since": 0, "splits": ["val", "test"]}, payload)
    assert (reply["val"], reply["test"]) == (None, None)
    with pytest.raises(OutsideLimits, match=r"metrics of 9 image\(s\); allowed: at least 10"):
        Limits().check_evaluated(9)


def test_the_folder_of_a_job_has_a_largest_size(opened, tmp_path):
    handler = opened(Limits(min_train_images=40, max_job_gb=1e-5))
    start(handler)
    (tmp_path / "job" / "log").write_bytes(b" " * 10_000)
    with pytest.raises(OutsideLimits, match=r"'max_job_gb' .* GB of disk; allowed: 1e-05"):
        start(handler)


def test_null_allows_anything_and_an_empty_file_nothing_but_the_defaults(tmp_path):
    path = tmp_path / "site.json"
    for text, limits in (
        ("{}", Limits()),
        ('{"limits": {}}', Limits()),
        ('{"limits": null}', Limits.open()),
        ('{"limits": {"min_sites": null, "methods": ["full"]}}', Limits(min_sites=None, methods=("full",))),
    ):
        path.write_text(text)
        site = Site.read(path)
        assert site.limits == limits
        assert parse(Site, site.model_dump(mode="json"), "site.json") == site
        path.write_text(site.model_dump_json(exclude_defaults=True))
        assert Site.read(path) == site
    assert json.loads(Site(limits=Limits.open()).model_dump_json(exclude_defaults=True)) == {"limits": None}
    assert all(value is None for _, value in Limits.open())
    assert Limits().of_memory() == Limits.open().model_copy(update={"max_memory_gb": Limits().max_memory_gb})


def test_time_at_the_site():
    Limits().check_seconds(604_799)
    with pytest.raises(OutsideLimits, match="more than the 604800 seconds that the site has worked for it; allowed"):
        Limits().check_seconds(604_800)
    assert 4 * GB == 4_000_000_000
