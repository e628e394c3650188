"""What a site leaves to chance is its own: nobody can repeat its training."""

import numpy as np
import pytest
import torch

from benchmark.oracle.reference import load_sites, make_trainer
from helpers import changed
from pt_peft.experiment.limits import Limits
from pt_peft.federation.local_round import local_round
from pt_peft.federation.server import FederationServer
from pt_peft.model.planned_exchange import initial_exchanged
from pt_peft.privacy.draws import Draws
from pt_peft.torch_random import generator, seed_torch
from pt_peft.worker.request_handler import RequestHandler

SITES = ("a", "b", "c", "d")
ONE_BATCH = {"batch_size": 40}
"""Of all images, so that their order does not matter."""
PUBLIC_NOISE = {
    "sample": {"noise_multiplier": 0.1, "max_grad_norm": 1.0, "delta": 1e-5},
    "randomness": "insecure_from_public_seed",
}


def trained(experiment, site, data, *, secret: bool):
    trainer = make_trainer(experiment, site)
    start = initial_exchanged(trainer.experiment, trainer.exchange, trainer.initial)
    return local_round(trainer, "a", data, start, {}, 0, secret=secret).payload


def same(one, other) -> bool:
    """But for the order of sums."""
    return all(np.allclose(value, other[key], rtol=0, atol=1e-5) for key, value in one.items())


@pytest.fixture(scope="module")
def still(tiny):
    """Nothing is left to chance but the order."""
    return changed(tiny, data={"augment": []})


@pytest.fixture(scope="module")
def data(tiny, site):
    return load_sites(tiny, site, list(SITES))


@pytest.mark.parametrize(
    ("fields", "chance"),
    [
        pytest.param({"training": ONE_BATCH}, False, id="nothing"),
        pytest.param({}, True, id="order"),
        pytest.param({"training": ONE_BATCH, "data": {"augment": ["flip"]}}, True, id="augmentation"),
        pytest.param({"training": ONE_BATCH, "backbone": {"kwargs": {"pos_drop_rate": 0.5}}}, True, id="dropout"),
        pytest.param({"training": {**ONE_BATCH, "imbalance": "weighted_sampler"}}, True, id="weighted sampler"),
        pytest.param({"training": {**ONE_BATCH, "ditto": 0.1}}, False, id="ditto"),
        pytest.param({"training": ONE_BATCH, "privacy": PUBLIC_NOISE}, True, id="noise"),
    ],
)
def test_secret_draws_cannot_be_repeated_and_others_can(still, site, data, fields, chance):
    if "backbone" in fields:
        fields = {**fields, "backbone": {"kwargs": {**still.backbone.kwargs, **fields["backbone"]["kwargs"]}}}
    experiment = changed(still, **fields)
    public = [trained(experiment, site, data["a"].train, secret=False) for _ in range(2)]
    assert all(np.array_equal(value, public[1][key]) for key, value in public[0].items()), "bit for bit"
    secret = [trained(experiment, site, data["a"].train, secret=True) for _ in range(2)]
    assert same(*secret) is not chance
    assert same(public[0], secret[0]) is not chance


@pytest.mark.parametrize(("limits", "secret"), [(Limits(), True), (Limits(secret_draws=False), False)])
def test_a_site_draws_secretly_by_default(limits, secret, tiny, site, tmp_path):
    limits = Limits.open().model_copy(update={"secret_draws": limits.secret_draws})
    own = site.model_copy(update={"limits": limits, "cache": str(tmp_path / "cache")})
    payloads = []
    for run in ("one", "other"):
        (tmp_path / run).mkdir()
        handler = RequestHandler()
        handler.open(
            {
                "experiment": tiny.model_dump(mode="json"), "site": own.model_dump(mode="json"), "name": "a",
                "names": list(SITES), "run_dir": str(tmp_path / run), "continues": None, "threads": 1,
            },
            {},
        )  # fmt: skip
        payloads.append(handler.train({"round": 0, "since": 0}, handler.initial_state({}, {})[1])[1])
    assert same(*payloads) is not secret


def test_two_jobs_without_and_with_one_site(still, site, data):
    """4 times the mean of four less 3 times that of three is the fourth's own update: to the bit of float32 where all
    draws are public, and buried under what the others drew where they are secret."""
    experiment = changed(still, method={"name": "lora", "options": {}}, federation={"rounds": 1})
    trainer = make_trainer(experiment, site)
    start = initial_exchanged(trainer.experiment, trainer.exchange, trainer.initial)

    def aggregate(names, secret):
        server = FederationServer(experiment, trainer.exchange, start)
        opened, sent = server.start_round(0), {}
        for name in names:
            result = local_round(trainer, name, data[name].train, start, {}, 0, secret=secret)
            opened.add(name, result.payload, result.num_samples)
            sent[name] = result.payload
        server.finish_round(opened, len(names))
        return server.tensors, sent

    key = "blocks.0.attn.qkv.lora_B"
    errors = {}
    for secret in (False, True):
        (four, own), (three, _) = aggregate(SITES, secret), aggregate(SITES[:3], secret)
        rebuilt = 4.0 * four[key].astype(np.float64) - 3.0 * three[key]
        errors[secret] = np.linalg.norm(rebuilt - own["d"][key]) / np.linalg.norm(own["d"][key])
    assert errors[False] < 1e-5
    assert errors[True] > 0.3


def test_all_bits_of_a_seed_count():
    """torch takes 32 for the CPU; so few can be tried one after another."""
    low, high = 5, 5 + (7 << 40)
    draws = {seed: torch.rand(1000, generator=generator(seed)) for seed in (low, high, high + (1 << 33))}
    assert not torch.equal(draws[low], draws[high])
    assert not torch.equal(draws[high], draws[high + (1 << 33)])
    assert torch.equal(draws[low], torch.rand(1000, generator=torch.Generator().manual_seed(low)))
    assert torch.equal(draws[high], torch.rand(1000, generator=generator(high)))
    assert 0.45 < draws[high].mean() < 0.55
    for seed in draws:
        seed_torch(seed)
        assert torch.equal(torch.rand(1000), draws[seed])
    # Where the state has its words: the first of a generator that was just seeded is the seed.
    assert int(torch.Generator().manual_seed(low).get_state()[24:32].view(torch.int64)) == low
    seeds = [Draws().seed() for _ in range(64)]
    assert np.bitwise_or.reduce(seeds) == 2**63 - 1, "every bit is drawn"
