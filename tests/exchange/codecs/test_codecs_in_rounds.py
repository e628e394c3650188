"""Whole federations whose payloads are rounded: in the plain loop, and by sites' workers that are restarted."""

import numpy as np
import pytest

from benchmark.oracle.reference import federate, load_sites, make_trainer
from helpers import changed
from pt_peft.errors import OutsideLimits, UserError
from pt_peft.exchange.aggregation.fedex_lora import FedExLora
from pt_peft.exchange.aggregation.norm_bounded_mean import NormBoundedMean
from pt_peft.exchange.server_optimizers.adaptive import FedAdam
from pt_peft.exchange.tensors import TensorError, TensorSpec, payload_bytes
from pt_peft.federation.server import FederationServer
from pt_peft.model.adapter_file import load_adapter
from pt_peft.model.planned_exchange import CONTROL, initial_exchanged
from pt_peft.worker.request_handler import RequestHandler
from pt_peft.worker.requests import Evaluation, Opening, RoundStart

NAMES = ["site-1", "site-2"]
INT8 = {"up": {"name": "int8"}, "down": {"name": "int8"}}
SCAFFOLD = {"training": {"control_variates": True}}
RANKS = {"federation": {"lora_ranks": {"site-1": 2}, "rounds": 3}}


@pytest.fixture(scope="module")
def lora(tiny):
    return changed(tiny, method={"name": "lora", "options": {}}, federation={"rounds": 3})


@pytest.fixture(scope="module")
def sites(lora, site):
    return load_sites(lora, site, NAMES)


@pytest.fixture(scope="module")
def plain(lora, site, sites):
    return federate(make_trainer(lora, site), sites).tensors


def apart(one, other):
    """The greatest difference."""
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


class InWorkers:
    """The federation as FLARE's sites run it, in this process: each site answers from its payload and its folder."""

    def __init__(self, experiment, site, folder):
        self.experiment = experiment
        self.site = site
        self.folder = folder
        fields, tensors = self.opened("server").initial_state({}, {})
        self.exchange = make_trainer(experiment, site).exchange
        assert fields == self.exchange.to_json()
        self.server = FederationServer(experiment, self.exchange, tensors)
        self.handlers = {}

    def opened(self, name):
        handler = RequestHandler()
        opening: Opening = {
            "experiment": self.experiment.model_dump(mode="json"),
            "site": self.site.model_dump(mode="json"),
            "name": name,
            "names": NAMES,
            "run_dir": str(self.folder / name),
            "continues": None,
            "threads": 1,
        }
        handler.open(opening, {})
        return handler

    def run(self, absent=(), restarts=False, lost=()):
        held, taken = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, -1)
        for number in range(self.experiment.federation.rounds):
            opened = self.server.start_round(number)
            for name in NAMES:
                if restarts or name not in self.handlers:
                    self.handlers[name] = self.opened(name)
                if (name, number) in absent:
                    held[name] = 0
                    continue
                payload = self.server.payload(name, held[name], number)
                exchange, written = self.server.exchange(name), self.experiment.payload
                assert specs_of(payload) == written.down.specs(exchange.down(held[name], number))
                message: RoundStart = {"round": number, "since": held[name], "taken": taken[name]}
                report, sent = self.handlers[name].train(message, payload)
                assert specs_of(sent) == written.up.specs(exchange.up(number))
                if (name, number) not in lost:
                    opened.add(name, sent, report["num_samples"])
                    taken[name] = number
                held[name] = number
            self.server.finish_round(opened, len(NAMES))
        return {key: self.server.tensors[key] for key in self.exchange.changed(self.experiment.federation.rounds)}


def specs_of(tensors):
    return {key: TensorSpec(value.shape, str(value.dtype)) for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("fields", "absent"),
    [
        ({}, ()),
        ({"payload": INT8}, (("site-2", 1),)),
        ({"payload": {"up": {"name": "top_k", "fraction": 0.2}, "down": {"name": "bfloat16"}}, **SCAFFOLD}, ()),
        (
            {"payload": INT8, "method": {"name": "sba", "options": {}}, "federation": {"rounds": 4}},
            (("site-1", 1), ("site-1", 2)),
        ),
    ],
    ids=["float32", "int8", "top-k with control variates", "int8 of tensors that take turns"],
)
def test_the_sites_sessions_are_equal_to_the_oracle(fields, absent, lora, site, sites, tmp_path):
    """A site's process is started anew for every round: what it needs lies in its folder."""
    experiment = changed(lora, **fields)
    trainer = make_trainer(experiment, site)
    expected = federate(trainer, sites, absent=absent)
    final = InWorkers(experiment, site, tmp_path).run(absent, restarts=True)
    assert final.keys() == expected.tensors.keys()
    assert apart(final, expected.tensors) <= 1e-6
    for name in NAMES:
        kept, _ = load_adapter(tmp_path / name / "local_adapter.safetensors")
        of_memory = {key for key in expected.kept[name] if key.startswith("unsent/")}
        assert of_memory == {key for key in kept if key.startswith("unsent/")}
        assert bool(of_memory) == (experiment.payload.up.name != "float32")
        assert all(np.allclose(kept[key], expected.kept[name][key], atol=1e-6) for key in of_memory)


@pytest.mark.parametrize(
    "fields", [SCAFFOLD, {"payload": INT8, **SCAFFOLD}, {"payload": INT8}], ids=["scaffold", "both", "int8"]
)
def test_a_result_that_the_server_did_not_take_is_as_if_it_had_not_been(fields, lora, site, sites, tmp_path):
    """It came too late, twice in a row and again: the site goes on from the c_k and the rest that the server knows."""
    experiment = changed(lora, **fields, federation={"rounds": 6})
    missed = (("site-2", 1), ("site-2", 2), ("site-2", 4))
    expected = federate(make_trainer(experiment, site), sites, absent=missed).tensors
    assert apart(InWorkers(experiment, site, tmp_path).run(lost=missed, restarts=True), expected) <= 1e-6


@pytest.mark.parametrize(
    ("payload", "most"),
    [
        ({"up": {"name": "float16"}, "down": {"name": "float32"}}, 1e-5),
        ({"up": {"name": "float32"}, "down": {"name": "float16"}}, 2e-3),
        ({"up": {"name": "bfloat16"}, "down": {"name": "bfloat16"}}, 1e-2),
        (INT8, 1e-2),
        ({"up": {"name": "top_k", "fraction": 1.0}}, 1e-5),
    ],
    ids=str,
)
def test_the_adapter_is_nearly_what_it_is_without(payload, most, lora, site, sites, plain):
    final = federate(make_trainer(changed(lora, payload=payload), site), sites).tensors
    assert 0 < apart(final, plain) <= most


def test_small_steps_are_not_lost_on_the_way_down(lora, site, sites):
    """They are far below half of int8's step of the tensors: the server's own add up what rounding would swallow."""
    experiment = changed(
        lora, payload={"up": {"name": "float32"}, "down": {"name": "int8"}}, training={"learning_rate": 1e-5}
    )
    trainer = make_trainer(experiment, site)
    final, start = federate(trainer, sites).tensors, trainer.initial
    unrounded = federate(make_trainer(changed(experiment, payload={"down": {"name": "float32"}}), site), sites).tensors
    key = "blocks.0.attn.qkv.lora_A"
    step = np.abs(start[key]).max(axis=1, keepdims=True) / 127
    moved, wanted = final[key] - start[key], unrounded[key] - start[key]
    assert (np.abs(wanted) < step / 4).all()
    assert wanted.any()
    assert np.abs(moved - wanted).sum() < 0.5 * np.abs(wanted).sum()


OTHER_WAYS = {
    "scaffold": (SCAFFOLD, {}),
    "fedex": ({"method": {"options": {"lora": {"residual": True}}}}, {"aggregation": FedExLora(name="fedex_lora")}),
    "ranks": (RANKS, {}),
    "robust": ({}, {"aggregation": NormBoundedMean(name="norm_bounded_mean", bound=1.0)}),
    "optimizer": ({}, {"server_optimizer": FedAdam(name="fedadam", learning_rate=0.003)}),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_with_other_ways_to_train_and_aggregate(way, lora, site, sites):
    """Both ways int8: near to what the same gives without."""
    fields, update = OTHER_WAYS[way]
    experiment = changed(lora, **fields).model_copy(update=update)
    rounded = changed(experiment, payload=INT8)
    trainer = make_trainer(rounded, site)
    one, other = federate(trainer, sites), federate(make_trainer(experiment, site), sites)
    assert one.tensors.keys() == other.tensors.keys()
    assert 0 < apart(one.tensors, other.tensors) <= 0.02
    sent = trainer.exchange.up(0)
    assert {f"unsent/{key}" for key in sent} == {key for key in one.kept["site-1"] if key.startswith("unsent/")}
    assert any(key.startswith(CONTROL) for key in sent) == (way == "scaffold")


def test_a_site_counts_the_bytes_that_leave(lora, site, sites, tmp_path):
    rounded = changed(lora, payload=INT8)
    federation = InWorkers(rounded, site, tmp_path)
    payload = federation.server.payload("site-1", 0, 0)
    _, sent = federation.opened("site-1").train({"round": 0, "since": 0}, payload)
    nbytes = payload_bytes(sent)
    exact = sum(spec.nbytes for spec in federation.exchange.up(0).values())
    assert nbytes < 0.5 * exact
    assert payload_bytes(payload) == nbytes
    for most, refused in ((nbytes, False), (nbytes - 1, True)):
        federation.site = site.model_copy(update={"limits": site.limits.model_copy(update={"bytes_per_round": most})})
        session = federation.opened("site-1")
        if refused:
            with pytest.raises(OutsideLimits, match=f"asks for {nbytes} bytes a round"):
                session.train({"round": 0, "since": 0}, payload)
        else:
            session.train({"round": 0, "since": 0}, payload)


def test_what_is_malformed_is_refused_at_both_ends(lora, site, tmp_path):
    federation = InWorkers(changed(lora, payload=INT8), site, tmp_path)
    payload = federation.server.payload("site-1", 0, 0)
    session = federation.opened("site-1")
    _, sent = session.train({"round": 0, "since": 0}, payload)
    bad = {**payload, "head.bias/scale": -np.ones(1, np.float32)}
    with pytest.raises(TensorError, match=r"'head\.bias/scale' has 1 negative"):
        session.train({"round": 1, "since": 0}, bad)
    opened = federation.server.start_round(0)
    for bad, message in (
        ({**sent, "head.bias": np.full(4, -128, np.int8)}, "'head.bias' has 4 value.s. of -128"),
        (
            {**sent, "head.bias": np.full(4, 127, np.int8), "head.bias/scale": np.full(1, 1e38, np.float32)},
            "'head.bias' has 4 value.s. that are not finite",
        ),
        ({key: value for key, value in sent.items() if key != "head.bias/scale"}, "missing: 'head.bias/scale'"),
    ):
        with pytest.raises(TensorError, match=message):
            opened.add("site-1", bad, 40)
    with pytest.raises(ValueError, match="no results"):
        opened.aggregator.result()


def test_a_value_that_cannot_be_written_says_so(lora, site):
    experiment = changed(lora, payload={"down": {"name": "float16"}})
    trainer = make_trainer(experiment, site)
    tensors = initial_exchanged(trainer.experiment, trainer.exchange, trainer.initial)
    tensors["head.bias"] = np.full(4, 1e5, np.float32)
    with pytest.raises(UserError, match=r"'head\.bias' has 4 value.s. beyond 65504"):
        FederationServer(experiment, trainer.exchange, tensors).payload("site-1", 0, 0)


def test_tensors_from_elsewhere_come_as_they_are(lora, site, tmp_path):
    """FLARE's cross-site evaluation sends what stands in an adapter file."""
    federation = InWorkers(changed(lora, payload=INT8), site, tmp_path)
    message: Evaluation = {"round": 3, "since": None, "splits": ["test"]}
    report, _ = federation.opened("site-1").evaluate(message, federation.server.tensors)
    test = report["test"]
    assert isinstance(test, dict)
    assert test["count"] == 16
