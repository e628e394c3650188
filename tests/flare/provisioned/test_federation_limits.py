"""A site's limits: what is outside is refused with a reason that may leave the site."""

import json
import shutil

import pytest
from lead import Lead

from helpers import changed
from pt_peft.errors import UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorSpec
from pt_peft.experiment.limits import Limits
from pt_peft.presets import demo, embedded_backbone


@pytest.mark.parametrize(
    ("limits", "method", "message"),
    [
        (Limits(methods=("lora", "norm")), "lora+norm", None),
        (Limits(methods=("lora", "norm")), "lora_vpt", "asks for method lora_vpt; allowed: lora, norm"),
        (Limits(methods=("lora",)), "lora+norm", "asks for method norm; allowed: lora"),
        (Limits(methods=()), "lora", "allowed: none"),
        (Limits(backbones=("0" * 64,)), "lora", "which the site does not know"),
        (Limits(backbones=(demo("lora")[0].backbone.sha256,)), "lora", None),
        (Limits(max_epsilon=8), "lora", "without differential privacy; epsilon at most 8 is asked for"),
    ],
)
def test_experiments(limits, method, message):
    experiment = demo(method)[0]
    if message is None:
        limits.check(experiment)
        return
    with pytest.raises(UserError) as refusal:
        limits.check(experiment)
    assert message in str(refusal.value)


def test_bytes_a_round():
    experiment = demo("lora")[0]
    specs = {"a": TensorSpec((10,), "float32"), "b": TensorSpec((90,), "float32")}
    exchange = Exchange(specs, frozenset({"a"}), (frozenset(), frozenset({"b"})))
    limits = Limits(bytes_per_round=399)
    limits.check_bytes(experiment, exchange, 0)
    with pytest.raises(UserError, match="'bytes_per_round' of its limits: it asks for 400 bytes a round; allowed: 399"):
        limits.check_bytes(experiment, exchange, 1)
    limits.check_bytes(changed(experiment, payload={"up": {"name": "float16"}}), exchange, 1)
    with pytest.raises(UserError, match="it asks for 400 bytes"):
        limits.check_nbytes(400)


@pytest.fixture
def as_provisioned(lead: Lead):
    """Sites whose `site.json` sets no limits."""
    before = {name: lead.federation.kit(name) / "local" / "site.json" for name in lead.federation.sites}
    texts = {path: path.read_text() for path in before.values()}
    for path, text in texts.items():
        settings = json.loads(text)
        del settings["limits"]
        path.write_text(json.dumps(settings))
    yield
    for path, text in texts.items():
        path.write_text(text)


@pytest.mark.slow
def test_the_job_that_rebuilt_an_image_is_refused(lead: Lead, experiment, as_provisioned):
    hole = changed(
        experiment,
        name="hole",
        backbone={"kwargs": {**embedded_backbone().kwargs, "patch_size": 64}},
        data={"images_per_site": {"train": 1, "val": 1, "test": 1}, "augment": []},
        method={"name": "full", "options": {}},
        training={"control_variates": True, "batch_size": 1},
        federation={"rounds": 1, "min_sites": 1, "sites": ["hospital-1"]},
    )
    run = lead.submit(hole)
    record = run.finish()
    assert record["status"] == "failed"
    assert "limits refuse this (field 'methods'): it asks for method full" in record["reason"]
    assert not (run.results / "app_server" / "adapter.safetensors").exists()
    ledger = (lead.federation.kit("hospital-1") / run.job / "egress.jsonl").read_text().splitlines()
    assert all("tensors" not in json.loads(line) for line in ledger)
    for name in ("hospital-2", "hospital-3"):
        assert not (lead.federation.kit(name) / run.job).exists()


@pytest.mark.slow
def test_a_job_in_two_apps_is_refused(lead: Lead, experiment, as_provisioned):
    """The other sites could fail in theirs, and leave one site alone with the server."""
    folder = lead.write(changed(experiment, name="two_apps", federation={"rounds": 1}))
    shutil.copytree(folder / "app", folder / "other")
    meta = json.loads((folder / "meta.json").read_text())
    meta["deploy_map"] = {"app": ["server", "hospital-1"], "other": ["hospital-2", "hospital-3"]}
    (folder / "meta.json").write_text(json.dumps(meta))
    record = lead.submit_folder(folder).finish()
    assert record["status"] == "failed"
    assert "limits refuse this (field 'min_sites'): it asks for" in record["reason"]
    assert "2" in record["reason"].partition("it asks for")[2].partition("; allowed: 1")[0]
