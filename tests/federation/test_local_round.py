"""A site's round: what it trains, sends and keeps. In the plain loop; FLARE is compared with that in test_simulator."""

import numpy as np
import pytest
import torch

from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import changed
from pt_peft.errors import UserError
from pt_peft.exchange.aggregation.fedex_lora import FedExLora
from pt_peft.exchange.aggregation.lora_product import LoraProduct
from pt_peft.exchange.lora_pairs import pairs
from pt_peft.federation.local_round import local_round, own_model
from pt_peft.model.planned_exchange import CONTROL, initial_exchanged

NAMES = ["site-1", "site-2", "site-3"]


@pytest.fixture(scope="module")
def lora(tiny):
    return changed(tiny, method={"name": "lora", "options": {}})


@pytest.fixture(scope="module")
def sites(lora, site):
    return load_sites(lora, site, NAMES)


@pytest.fixture(scope="module")
def plain(lora, site, sites):
    return federate(make_trainer(lora, site), sites).tensors


def test_ffa_keeps_a(lora, site, sites):
    """As the seed has drawn it, to the bit; it neither trains nor travels, and the rest does."""
    experiment = changed(lora, method={"roles": {"*.lora_A": "frozen"}})
    trainer = make_trainer(experiment, site)
    parameters = {name: value.clone() for name, value in trainer.model.module.state_dict().items() if "lora_A" in name}
    final = federate(trainer, sites)
    assert parameters
    assert all((trainer.model.module.state_dict()[name] == value).all() for name, value in parameters.items())
    assert not any("lora_A" in key for key in final.tensors)
    assert all(final.tensors[key].any() for key in final.tensors if "lora_B" in key)
    whole = make_trainer(lora, site).model.module.state_dict()
    assert all((whole[name] == value).all() for name, value in parameters.items()), "the start is the same as LoRA's"


def test_fedsa_keeps_b_at_the_site(lora, site, sites):
    final = federate(make_trainer(changed(lora, method={"roles": {"*.lora_B": "local"}}), site), sites)
    assert not any("lora_B" in key for key in final.tensors)
    one, other = final.kept["site-1"], final.kept["site-2"]
    assert all("lora_B" in key for key in one)
    assert all(value.any() and not np.array_equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ({"*.lora_C": "frozen"}, "'method.roles.*.lora_C' fits no tensor of method 'lora'; its tensors are 'blocks.0"),
        ({"*.lora_A": "frozen", "blocks.0.*": "local"}, "another pattern makes it frozen"),
        ({"*": "local"}, None),
        ({"head.*": "local"}, "fits no tensor"),
    ],
)
def test_roles_that_cannot_be(roles, words, lora, site):
    experiment = changed(lora, method={"roles": roles})
    if words is None:  # the head travels still
        assert all(key.startswith("head.") for key in make_trainer(experiment, site).exchange.specs)
        return
    with pytest.raises(UserError) as error:
        make_trainer(experiment, site)
    assert words in str(error.value)


def test_scaffold_under_plain_descent(lora, site, sites):
    """The new variate is the paper's option II, c_k - c + (x - y) / (K eta), for steps y <- y - eta (g - c_k + c)."""
    experiment = changed(lora, training={"control_variates": True, "schedule": "constant", "weight_decay": 0.0})
    trainer, rate = make_trainer(experiment, site), 0.1
    trainer._optimizer = lambda keys: torch.optim.SGD(trainer.model.activate(keys), lr=rate)
    received, kept = initial_exchanged(trainer.experiment, trainer.exchange, trainer.initial), {}
    random = np.random.default_rng(0)
    received |= {
        key: random.normal(scale=0.01, size=received[key].shape).astype(np.float32) for key in trainer.exchange.control
    }
    for number in range(2):
        before = dict(kept)
        result = local_round(trainer, "site-1", sites["site-1"].train, received, kept, number)
        kept = result.kept
        steps = -(-len(sites["site-1"].train) // 16)
        for key in trainer.exchange.trained(number):
            own, moved = f"own control/{key}", received[key] - result.state[key]
            wanted = before.get(own, 0) - received[CONTROL + key] + moved / (steps * rate)
            np.testing.assert_allclose(kept[own], wanted, atol=2e-5)
            np.testing.assert_allclose(result.payload[CONTROL + key], kept[own] - before.get(own, 0), atol=1e-7)


def test_scaffold_changes_training_but_not_the_adapter_file(lora, site, sites, plain):
    trainer = make_trainer(changed(lora, training={"control_variates": True}), site)
    final = federate(trainer, sites, absent={("site-3", 1)})
    assert final.tensors.keys() == plain.keys()
    assert max(np.abs(final.tensors[key] - plain[key]).max() for key in plain) > 1e-5
    sent = trainer.exchange.up(0)
    assert len(sent) == 2 * len(trainer.exchange.trained(0)) == 2 * len(plain)


def test_ditto(lora, site, sites, plain):
    """The federation is as without; the own models differ from it the less, the harder they are pulled."""
    distances = []
    for strength in (0.01, 100.0):
        final = federate(make_trainer(changed(lora, training={"ditto": strength}), site), sites)
        assert all(np.array_equal(value, plain[key]) for key, value in final.tensors.items())
        own = own_model(final.kept["site-1"])
        assert own.keys() == plain.keys()
        distances.append(sum(float(np.square(own[key] - plain[key]).sum()) for key in plain))
    assert distances[0] > 1.2 * distances[1] > 0


@pytest.mark.parametrize("rule", [{}, {"aggregation": LoraProduct(name="lora_product")}], ids=["mean", "product"])
def test_sites_of_smaller_rank(rule, lora, site, sites):
    """They hold, train and send no more than their components, and the adapter has all of them."""
    experiment = changed(lora, federation={"lora_ranks": {"site-1": 1, "site-2": 2}}).model_copy(update=rule)
    trainer = make_trainer(experiment, site)

    class Observer:
        def starts(self, round_number, site, tensors):
            self.check(site, tensors)

        def trained(self, round_number, site, result):
            self.check(site, result.state)

        def check(self, name, tensors):
            rank = {"site-1": 1, "site-2": 2, "site-3": 4}[name]
            for pair in pairs(tensors):
                assert not tensors[pair.a][rank:].any()
                assert not tensors[pair.b][:, rank:].any()
                assert tensors[pair.a][:rank].any()

    final = federate(trainer, sites, observer=Observer()).tensors
    pair = pairs(final)[0]
    assert final[pair.a].shape[0] == 4
    assert final[pair.a][3].any()
    specs = trainer.exchange.at_rank(1).up(0)
    assert specs[pair.a].shape == (1, 32)
    assert specs[pair.b].shape == (96, 1)


def test_products_of_more_components_than_the_layer_is_wide(lora, site, sites):
    """Three rounds, with a site of a smaller rank: 40 components of a layer of 32 inputs."""
    options = {"lora": {"rank": 40}}
    experiment = changed(
        lora, method={"options": options}, federation={"rounds": 3, "lora_ranks": {"site-1": 36}}
    ).model_copy(update={"aggregation": LoraProduct(name="lora_product")})
    final = federate(make_trainer(experiment, site), sites).tensors
    pair = pairs(final)[0]
    assert (final[pair.a].shape, final[pair.b].shape) == ((40, 32), (96, 40))
    np.testing.assert_allclose(final[pair.a] @ final[pair.a].T, np.diag(np.arange(40) < 32), atol=1e-5)
    assert final[pair.b].any()


def test_a_frozen_factor_does_not_lend_its_other_components(lora, site, sites):
    experiment = changed(lora, method={"roles": {"*.lora_A": "frozen"}}, federation={"lora_ranks": {"site-1": 1}})
    result = local_round(
        (trainer := make_trainer(experiment, site)), "site-1", sites["site-1"].train, trainer.initial, {}, 0
    )
    trained = [value for key, value in result.state.items() if key.endswith("lora_B")]
    assert trained
    assert all(value[:, :1].any() and not value[:, 1:].any() for value in trained)


def test_fedex_gives_every_site_the_mean_of_the_products(lora, site, sites):
    """What round 2 starts from, as the model computes it: W + s (B A + R)."""
    method = {"options": {"lora": {"residual": True}}}
    experiment = changed(lora, method=method).model_copy(update={"aggregation": FedExLora(name="fedex_lora")})
    trainer = make_trainer(experiment, site)
    products: dict[int, list] = {0: [], 1: []}
    starts = {}

    class Observer:
        def starts(self, round_number, site, tensors):
            starts[round_number] = tensors

        def trained(self, round_number, site, result):
            state = result.state
            products[round_number].append(
                (result.num_samples, {pair: state[pair.b] @ state[pair.a] for pair in pairs(state)})
            )

    final = federate(trainer, sites, observer=Observer()).tensors
    total = sum(count for count, _ in products[0])
    for pair in pairs(starts[1]):
        mean = sum(count / total * product[pair] for count, product in products[0])
        np.testing.assert_allclose(starts[1][pair.b] @ starts[1][pair.a] + starts[1][pair.residual], mean, atol=1e-5)
    assert any(final[pair.residual].any() for pair in pairs(final))
    assert not any("residual" in key for key in trainer.exchange.up(0))
    assert any("residual" in key for key in trainer.exchange.down(0, 0))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": {"name": "bitfit", "options": {}}, "aggregation": {"name": "lora_fair"}}, "exchanges no such pair"),
        (
            {"aggregation": {"name": "fedex_lora"}},
            "'method.options.lora.residual' must be true with aggregation.name 'fedex_lora'",
        ),
        (
            {"method": {"options": {"lora": {"residual": True}}}},
            "'method.options.lora.residual' must be false with aggregation.name 'mean'",
        ),
        (
            {"federation": {"lora_ranks": {"site-1": 5}}},
            "'federation.lora_ranks' must be at most 4 for each site with method.name 'lora'",
        ),
        (
            {"method": {"name": "bitfit", "options": {}}, "federation": {"lora_ranks": {"site-1": 1}}},
            "'federation.lora_ranks' must be empty with method.name 'bitfit'",
        ),
        (
            {"method": {"name": "sba", "options": {}}, "training": {"control_variates": True}},
            "'training.control_variates' must be false with method.name 'sba'",
        ),
        (
            {"aggregation": {"name": "lora_product"}, "server_optimizer": {"name": "fedadam"}},
            "'server_optimizer.name' must be 'none'",
        ),
        (
            {"method": {"name": "pissa", "options": {}}, "federation": {"lora_ranks": {"site-1": 2}}},
            "'federation.lora_ranks' must be empty with method.name 'pissa': fewer components",
        ),
        (
            {
                "method": {"options": {"lora": {"residual": True}}, "roles": {"*_residual": "local"}},
                "aggregation": {"name": "fedex_lora"},
            },
            "'method.roles' must be 'exchanged' for lora_residual",
        ),
        (
            {"method": {"head": "frozen", "roles": {"*": "frozen"}}},
            "make every tensor frozen, so that nothing would train",
        ),
        (
            {"federation": {"sites": NAMES, "lora_ranks": {"site-9": 1}}},
            "'federation.lora_ranks' must be for names among the sites",
        ),
    ],
)
def test_what_does_not_fit(fields, words, lora, site):
    with pytest.raises((UserError, ValueError)) as error:
        make_trainer(changed(lora, **fields), site)
    assert words in str(error.value)
