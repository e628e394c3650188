"""Private rounds of whole federations: in the plain loop, in a worker, and in FLARE's simulator."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import changed, opened, simulate
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.exchange.aggregation.base import SiteResult
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.privacy import ClientPrivacy
from pt_peft.experiment.site import Site
from pt_peft.federation.reports import rounded_epsilon
from pt_peft.model.adapter_file import load_adapter
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.privacy.accounting import epsilon
from pt_peft.privacy.budget import FILE_NAME
from pt_peft.privacy.draws import PublicDraws
from pt_peft.privacy.plan import client_epsilon, steps_of_a_round
from pt_peft.privacy.update_noise import NoisyMean, bounded, noisy_update
from pt_peft_flare.job_folder import write_job, write_workspace

NAMES = ["site-1", "site-2"]
SAMPLE = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-5}
CLIENT = {"noise_multiplier": 0.5, "max_update_norm": 0.2, "delta": 1e-5, "where": "server"}
MEAN = {"name": "mean", "weighting": "uniform"}
PUBLIC = {"randomness": "insecure_from_public_seed"}


@pytest.fixture(scope="module")
def site(tiny_weights):
    return Site(limits=Limits.open(), backbone=str(tiny_weights))


@pytest.fixture(scope="module")
def lora(tiny):
    return changed(tiny, method={"name": "lora", "options": {}}, aggregation=MEAN)


def test_updates_are_bounded_and_their_sum_is_noisy():
    before = {"a": np.zeros(3, np.float32), "b": np.ones((50, 40), np.float32)}
    after = {"a": np.array([3.0, 0, 0], np.float32), "b": before["b"].copy()}
    after["b"][0, 0] += 4
    change = bounded(after, before, 1.0)
    np.testing.assert_allclose(change["a"], [0.6, 0, 0], rtol=1e-6)
    assert change["b"][0, 0] == pytest.approx(0.8)
    assert bounded(after, before, 10.0)["a"][0] == 3
    assert not bounded({**after, "a": np.full(3, np.inf, np.float32)}, before, 1.0)["b"].any()

    client = ClientPrivacy(noise_multiplier=2.0, max_update_norm=1.0, delta=1e-5, where="sites")
    sent = [noisy_update(after, before, client, 4, PublicDraws(seed)) for seed in range(4)]
    assert sent[0]["b"].dtype == np.float32
    assert (sent[0]["b"] - 1)[1:].std() == pytest.approx(2.0 / 2, rel=0.05), "a quarter of the variance"
    assert np.sum([one["b"] - 1 for one in sent], axis=0)[1:].std() == pytest.approx(2.0, rel=0.05), (
        "four sites have all of it"
    )

    means = []
    for order in (range(3), (2, 0, 1)):
        mean = NoisyMean(before, client, PublicDraws(7))
        for index in order:
            tensors = {key: value * np.float32(1 + index) for key, value in after.items()}
            mean.add(SiteResult(f"site-{index}", tensors, 10 + index))
        means.append(mean.result())
    assert all(np.array_equal(value, means[1][key]) for key, value in means[0].items())
    assert (means[0]["b"] - 1)[1:].std() == pytest.approx(2.0 / 3, rel=0.05)
    with pytest.raises(ValueError):
        NoisyMean(before, client, PublicDraws(7)).result()


def test_the_noisy_mean_keeps_results_and_no_float64_copies():
    before = {"a": np.zeros(10_000, np.float32)}
    client = ClientPrivacy(noise_multiplier=2.0, max_update_norm=1.0, delta=1e-5, where="server")
    mean = NoisyMean(before, client, PublicDraws(7))
    results = [SiteResult(f"site-{index}", {"a": np.ones(10_000, np.float32)}, 1) for index in range(20)]
    tracemalloc.start()
    for result in results:
        mean.add(result)
    mean.result()
    assert tracemalloc.get_traced_memory()[1] < 20 * 80_000 / 2
    tracemalloc.stop()


@pytest.mark.parametrize(
    "privacy",
    [{"sample": SAMPLE}, {"client": CLIENT}, {"client": {**CLIENT, "where": "sites"}}],
    ids=["sample", "server", "sites"],
)
def test_the_plain_loop(privacy, lora, site):
    """Equal runs from the public seed alone; what a site reports has no loss."""
    finals = []
    for randomness in (PUBLIC, PUBLIC, {}):
        experiment = changed(
            lora, privacy={**privacy, **randomness}, training={"control_variates": "sample" in privacy}
        )
        losses = []

        class Observer:
            def starts(self, round_number, site, tensors):
                pass

            def trained(self, round_number, site, result, losses=losses):
                losses.append(result.loss)

        trainer = make_trainer(experiment, site)
        finals.append(federate(trainer, load_sites(experiment, site, NAMES), observer=Observer()).tensors)
        assert losses == [None] * 4
    one, again, secret = finals
    assert all(np.array_equal(value, again[key]) for key, value in one.items())
    assert all(not np.array_equal(value, secret[key]) and np.isfinite(secret[key]).all() for key, value in one.items())


def test_a_worker_pays_before_it_trains_and_stops_at_its_limit(lora, site, tmp_path):
    experiment = changed(lora, privacy={"sample": SAMPLE})
    a_round = steps_of_a_round(experiment, 40)
    limit = epsilon(2 * a_round, 1e-5) * 1.001
    limited = site.model_copy(update={"limits": Limits.open().model_copy(update={"max_epsilon": limit})})
    received = None
    for number, times in ((0, 1), (0, 2)):  # restarted, and the round is done again
        session = opened(experiment, limited, tmp_path / "job")
        received = initial_exchanged(session.experiment, session._trainer.exchange, session._trainer.initial)
        reply, _ = session.train({"round": number, "since": 0}, received)
        assert reply["epsilon"] == epsilon(times * a_round, 1e-5)
        assert reply["train_loss"] is None
    with pytest.raises(OutsideLimits, match=r"1 round\(s\) more, with which"):
        opened(experiment, limited, tmp_path / "job").train({"round": 1, "since": 0}, received)
    assert len(json.loads((tmp_path / FILE_NAME).read_text())["spent"]) == 2


def test_with_privacy_for_sites_their_own_tensors_stay(lora, site, tmp_path):
    session = opened(changed(lora, privacy={"client": CLIENT}), site, tmp_path / "job")
    with pytest.raises(UserError, match="have no noise"):
        session.local_state({}, {})


@pytest.mark.slow
@pytest.mark.parametrize("where", ["server", "sites"])
def test_flare_is_equal_to_the_oracle(where, lora, site, shared_host, tmp_path):
    privacy = {"sample": SAMPLE, "client": {**CLIENT, "where": where}, **PUBLIC}
    experiment = changed(lora, privacy=privacy, training={"proximal": 0.1})
    expected = federate(make_trainer(experiment, site), load_sites(experiment, site, NAMES)).tensors
    write_workspace(site, tmp_path / "workspace")
    write_job(experiment, tmp_path / "job")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    tensors, header = load_adapter(run.server / "adapter.safetensors")
    assert max(float(np.abs(tensors[key] - expected[key]).max()) for key in expected) <= 1e-6
    said: Any = header["privacy"]
    assert said["sample"]["epsilon"] is None
    assert said["client"]["epsilon"] is None
    assert not (run.workspace / "site-1" / FILE_NAME).exists(), "nothing is spent where nothing is claimed"


@pytest.mark.slow
def test_what_a_private_run_says_of_itself(lora, site, shared_host, tmp_path):
    experiment = changed(lora, privacy={"sample": SAMPLE, "client": CLIENT})
    a_round = steps_of_a_round(experiment, 40)
    limit = epsilon(2 * a_round, 1e-5) * 1.001
    limited = site.model_copy(update={"limits": Limits.open().model_copy(update={"max_epsilon": limit})})
    write_workspace(limited, tmp_path / "workspace")
    write_job(experiment, tmp_path / "job")
    run = simulate(tmp_path / "job", tmp_path / "workspace", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code == 0, run.output
    for number, entry in enumerate(run.metrics["rounds"]):
        assert entry["client_epsilon"] == pytest.approx(client_epsilon(experiment, number + 1))
        assert "lora_deviation" not in entry
        for report in entry["sites"].values():
            assert report["epsilon"] == rounded_epsilon(epsilon((number + 1) * a_round, 1e-5))
            assert report["train_loss"] is None
    said: Any = load_adapter(run.server / "adapter.safetensors")[1]["privacy"]
    assert said["sample"]["epsilon"] == rounded_epsilon(epsilon(2 * a_round, 1e-5))
    assert said["client"]["epsilon"] == pytest.approx(client_epsilon(experiment, 2))
    lines = [line for line in run.ledger("site-1") if line["task"] == "train"]
    assert [line["privacy"]["epsilon"] for line in lines] == [line["report"]["epsilon"] for line in lines]
    assert lines[0]["privacy"]["sample"]["noise_multiplier"] == 1.0
    assert "client" not in lines[0]["privacy"]
    assert len(json.loads((run.workspace / "site-1" / FILE_NAME).read_text())["spent"]) == 2
    events = list((run.server / "tb_events").rglob("*"))
    assert any(b"privacy/epsilon" in path.read_bytes() for path in events if path.is_file())

    # One more round than the site can pay for: the lead reads why.
    write_workspace(limited, tmp_path / "other")
    write_job(changed(experiment, federation={"rounds": 3}), tmp_path / "job")
    run = simulate(tmp_path / "job", tmp_path / "other", "-n", "2", "-t", "2", cwd=tmp_path, host=shared_host)
    assert run.exit_code != 0
    assert "limits refuse this (field 'max_epsilon'): its epsilon would be" in run.metrics["reason"]
