"""What may stand beside the section ``privacy``, and what leaves with it."""

import json
from typing import Any

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.filters.svt_privacy import SVTPrivacy

from helpers import changed
from pt_peft import reasons
from pt_peft.environment import own_code
from pt_peft.errors import UserError
from pt_peft.experiment.admission import WITHOUT_GUARANTEE, filter_refusals
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.privacy import Privacy
from pt_peft.federation.reports import TrainingReport
from pt_peft.model.adapted_model import build_model
from pt_peft.model.planned_exchange import planned_exchange
from pt_peft.privacy.claims import claim
from pt_peft.privacy.plan import client_epsilon
from pt_peft_flare.filters import applied
from pt_peft_flare.job_folder import CLIENT_CONFIG

SAMPLE = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}
CLIENT = {"noise_multiplier": 2.0, "max_update_norm": 0.1, "delta": 1e-5, "where": "server"}
MEAN = {"name": "mean", "weighting": "uniform"}
BOUNDED = {"name": "norm_bounded_mean", "bound": 1.0}
REPORT = {"num_samples": 10, "train_loss": None, "seconds": 1.0, "val": None, "code": own_code()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"privacy": {"sample": SAMPLE}, "training": {"imbalance": "weighted_loss"}},
            "counts the labels of the images",
        ),
        (
            {"privacy": {"sample": SAMPLE}, "training": {"imbalance": "weighted_sampler"}},
            "counts the labels of the images",
        ),
        ({"privacy": {"sample": SAMPLE}, "training": {"proximal": 0.1, "control_variates": True, "ditto": 0.1}}, None),
        ({"privacy": {"sample": SAMPLE}, "aggregation": BOUNDED, "server_optimizer": {"name": "fedadam"}}, None),
        ({"privacy": {"client": CLIENT}}, "it is 'samples'"),
        ({"privacy": {"client": CLIENT}, "aggregation": BOUNDED}, "it is 'norm_bounded_mean'"),
        (
            {"privacy": {"client": CLIENT}, "aggregation": MEAN, "training": {"control_variates": True}},
            "a second vector",
        ),
        (
            {"privacy": {"client": CLIENT}, "aggregation": MEAN, "federation": {"lora_ranks": {"site-1": 1}}},
            "lora_ranks' must be empty",
        ),
        ({"privacy": {"client": CLIENT}, "aggregation": MEAN, "server_optimizer": {"name": "fedadam"}}, None),
        ({"privacy": {"client": CLIENT, "sample": SAMPLE}, "aggregation": MEAN}, None),
        ({"privacy": {"randomness": "insecure_from_public_seed"}}, "'privacy.randomness' must be 'secret'"),
        ({"privacy": {"sample": {**SAMPLE, "delta": 0.1}}}, "less than or equal to 0.001"),
    ],
)
def test_what_breaks_a_guarantee(fields, message, tiny):
    content = tiny.model_dump(mode="json")
    for name, value in fields.items():
        content[name] = value if value is BOUNDED else {**content[name], **value}
    if message is None:
        Experiment.model_validate_json(json.dumps(content))
        return
    with pytest.raises(ValueError) as error:
        Experiment.model_validate_json(json.dumps(content))
    assert message in str(error.value)


def test_clients_and_rotating_methods(tiny):
    experiment = changed(tiny, method={"name": "sba", "options": {}}, privacy={"client": CLIENT}, aggregation=MEAN)
    with pytest.raises(UserError, match=r"'privacy.client' must be null with method.name 'sba'"):
        planned_exchange(build_model(experiment.model, None), experiment)


@pytest.mark.parametrize(
    ("privacy", "report", "message"),
    [
        ({"sample": SAMPLE}, {"epsilon": 1.0}, None),
        ({"sample": SAMPLE}, {"epsilon": 1.0, "train_loss": 0.5}, "train_loss is 0.5; null would be right"),
        ({"sample": SAMPLE}, {}, "epsilon is None; a number would be right"),
        (
            {"sample": SAMPLE, "randomness": "insecure_from_public_seed"},
            {"epsilon": 1.0},
            "epsilon is 1.0; null would be right",
        ),
        ({"sample": SAMPLE, "randomness": "insecure_from_public_seed"}, {}, None),
        ({"client": CLIENT}, {}, None),
        ({"client": {**CLIENT, "where": "sites"}}, {"epsilon": 2.0}, None),
        ({}, {}, "train_loss is None; a number would be right"),
        ({}, {"train_loss": 0.5, "epsilon": 1.0}, "epsilon is 1.0; null would be right"),
    ],
)
def test_reports_say_what_was_asked_for(tiny, privacy, report, message):
    experiment = tiny.model_copy(update={"privacy": Privacy.model_validate_json(json.dumps(privacy))})
    report = TrainingReport(**{**REPORT, **report})
    if message is None:
        report.checked(experiment)
        return
    with pytest.raises(UserError, match=message):
        report.checked(experiment)


def test_what_is_claimed(tiny):
    rounds = [{"sites": {"a": {"epsilon": 1.5}, "b": {"epsilon": 2.5}}}, {"sites": {"a": {"epsilon": 2.0}}}]
    assert claim(tiny, rounds) is None
    said = claim(changed(tiny, privacy={"sample": SAMPLE}), rounds)
    assert said is not None
    assert said["sample"]["epsilon"] == 2.5
    assert said["sample"]["delta"] == 1e-5
    assert said["client"] is None
    at_sites = changed(tiny, privacy={"client": {**CLIENT, "where": "sites"}}, aggregation=MEAN)
    said = claim(at_sites, rounds)
    assert said is not None
    assert said["client"]["epsilon"] == client_epsilon(at_sites, 2)
    assert said["client"]["epsilon_of_own_noise"] == 2.5
    told: Any = applied(at_sites, TrainingReport(**REPORT, epsilon=2.5))
    assert told["epsilon"] == 2.5
    assert told["client"]["own_noise_multiplier"] == pytest.approx(2**0.5)
    public_noise = {"sample": SAMPLE, "client": CLIENT, "randomness": "insecure_from_public_seed"}
    said = claim(changed(tiny, privacy=public_noise, aggregation=MEAN), [{"sites": {"a": {"epsilon": None}}}])
    assert said is not None
    assert said["sample"]["epsilon"] is None
    assert said["client"]["epsilon"] is None


def config_with(filters: list[dict], folder) -> None:
    config = json.loads(json.dumps(CLIENT_CONFIG))
    config["task_result_filters"].insert(0, {"tasks": ["train"], "filters": filters})
    (folder / "config_fed_client.json").write_text(json.dumps(config))


@pytest.mark.parametrize("key", ["path", "name"])
@pytest.mark.parametrize("name", WITHOUT_GUARANTEE)
def test_filters_without_a_guarantee(name, key, tiny, tmp_path):
    private = changed(tiny, privacy={"sample": SAMPLE})
    config_with([{key: f"nvflare.app_common.filters.{name}" if key == "path" else name, "args": {}}], tmp_path)
    assert not [*filter_refusals(tiny, tmp_path)]
    (refusal,) = filter_refusals(private, tmp_path)
    assert f"task_result_filters' has {name}, which is no part of" in str(refusal)
    assert refusal.reason == reasons.Filters()
    config_with([], tmp_path)
    assert not [*filter_refusals(private, tmp_path)]


def test_what_is_said_of_them_is_so():
    """By running them as they come."""
    update = {"x": np.random.default_rng(0).normal(scale=1e-3, size=15_364)}
    context = FLContext()

    def filtered(one, values):
        return one.process_dxo(DXO(DataKind.WEIGHT_DIFF, data={"x": values["x"].copy()}), Shareable(), context).data[
            "x"
        ]

    first, again = (filtered(PercentilePrivacy(), update) for _ in range(2))
    assert np.array_equal(first, again), "no random number"
    sparse = SVTPrivacy()
    filtered(sparse, update)
    [entry] = sparse.get_privacy_ledger()
    assert entry["epsilon_threshold"] + entry["epsilon_query"] == pytest.approx(sparse.epsilon)
    assert entry["n_upload"] == 1537
    assert sparse.get_privacy_spent() == pytest.approx(0.1 + 153.7)
    filtered(sparse, update)
    assert sparse.get_privacy_spent() == pytest.approx(2 * 153.8), "each round the same again"


def test_svt_lets_more_values_pass_than_its_noise_is_made_for(caplog):
    sparse = SVTPrivacy()
    update = {"x": np.random.default_rng(0).normal(scale=1e-3, size=15_364)}
    with caplog.at_level("INFO"):
        sparse.process_dxo(DXO(DataKind.WEIGHT_DIFF, data=update), Shareable(), FLContext())
    [line] = [record.getMessage() for record in caplog.records if "accepted responses" in record.getMessage()]
    passed, made_for = map(int, line.split("reach ")[1].split(" ")[0].split("/"))
    assert made_for == 1537
    assert passed > 1.5 * made_for
