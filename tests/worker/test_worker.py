"""A worker: what it answers, and what becomes of it when it dies, hangs or loses its user."""

import copy
import os
import signal
import threading
import time
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from helpers import gone
from pt_peft.errors import BackboneMismatch, UserError
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.model.adapter_file import load_adapter
from pt_peft.worker import prepared
from pt_peft.worker.handle import HostGone, Patience, Worker, WorkerError
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.requests import Opening, Work


@pytest.fixture
def host(shared_host):
    return shared_host


@pytest.fixture
def opening(tiny, tiny_weights, tmp_path) -> Opening:
    return {
        "experiment": tiny.model_dump(mode="json"),
        "site": Site(limits=Limits.open(), backbone=str(tiny_weights), cache=str(tmp_path / "cache")).model_dump(
            mode="json"
        ),
        "name": "site-1",
        "names": ["site-1", "site-2"],
        "run_dir": str(tmp_path / "run"),
        "continues": None,
        "threads": 1,
    }


@pytest.fixture
def worker(host, opening):
    worker = Worker(host.socket, opening)
    yield worker
    worker.kill()


def test_a_round(worker, host, opening):
    _, initial = worker.call("initial_state")
    exchange, _ = worker.call("exchange")
    assert exchange["tensors"].keys() == initial.keys()
    report, trained = worker.call("train", {"round": 0, "since": 0}, initial)
    assert report["num_samples"] == 40
    assert report["val"]["count"] == 16
    assert any(not np.array_equal(trained[key], initial[key]) for key in initial)
    evaluation, _ = worker.call("evaluate", {"splits": ["val", "test"], "round": 2, "since": 0}, trained)
    assert evaluation["test"]["count"] == 16

    # Another process gives the same, and has what the first one left.
    again = Worker(host.socket, opening)
    header, local = again.call("local_state")
    assert header == {"round": 0}
    assert all(np.array_equal(local[key], trained[key]) for key in local)
    _, repeated = again.call("train", {"round": 0, "since": 0}, initial)
    assert all(np.array_equal(repeated[key], trained[key]) for key in trained)
    again.kill()


def test_a_site_that_lost_what_it_held(host, opening):
    """A site of a round-dependent method says so, and goes on once it is sent all that has changed."""
    opening["experiment"]["method"] = {
        "name": "sba",
        "options": {"sba": {"draw": "without_replacement"}},
        "head": "frozen",
    }
    opening["experiment"]["federation"]["rounds"] = 4
    worker = Worker(host.socket, opening)
    fields, state = worker.call("initial_state")
    exchange = Exchange.from_json(fields)

    def train(number, since):
        payload = {key: state[key] for key in exchange.down(since, number)}
        return worker.call("train", {"round": number, "since": since}, payload)

    _, first = train(0, 0)
    assert first.keys() == exchange.trained(0).keys()
    assert not exchange.down(0, 0)
    state.update(first)
    _, second = train(1, 0)
    assert second.keys().isdisjoint(first)
    received = Path(opening["run_dir"]) / "received.safetensors"
    assert load_adapter(received)[0].keys() == first.keys()
    state.update(second)
    _, expected = train(2, 1)

    received.unlink()
    with pytest.raises(
        UserError, match="holds the aggregate of 0 finished rounds, but was sent only what has changed since 1"
    ):
        train(2, 1)
    received.write_bytes(b"half of a file")
    _, again = train(2, 0)
    assert all(np.array_equal(again[key], expected[key]) for key in expected)
    # A server that starts again from an earlier round knows nothing of what came later.
    _, repeated = train(1, 0)
    assert all(np.array_equal(repeated[key], second[key]) for key in second)
    worker.kill()


def test_tensors_are_checked_on_arrival(worker):
    _, initial = worker.call("initial_state")
    initial["head.bias"][0] = np.nan
    with pytest.raises(TensorError, match=r"'head\.bias' has 1 value"):
        worker.call("train", {"round": 0, "since": 0}, initial)


def test_a_worker_that_hangs_is_killed(worker):
    os.kill(worker.pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"did not finish exchange within 0.5 s"):
        worker.call("exchange", patience=Patience(0.5))
    assert time.monotonic() - started < 5
    assert gone(worker.pid)


def test_a_host_that_hangs_is_given_up(opening, tmp_path):
    host = WorkerHost(tmp_path / "host.log")
    Worker(host.socket, opening).kill()
    os.kill(host._process.pid, signal.SIGSTOP)
    with pytest.raises(HostGone, match=r"does not answer .not within 0.5 s"):
        Worker(host.socket, opening, Patience(0.5))
    with pytest.raises(WorkerError, match="stopped"):
        Worker(host.socket, opening, Patience(stopped=lambda: True))
    host.close()
    assert gone(host._process.pid)


def test_a_worker_that_dies(worker):
    threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="died during exchange"):
        worker.call("exchange")


def test_a_worker_that_is_stopped(worker):
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match="stopped"):
        worker.call("exchange", patience=Patience(stopped=lambda: True))
    assert gone(worker.pid)


def test_a_worker_ends_with_its_user(host, opening):
    worker = Worker(host.socket, opening)
    worker._connection.close()  # as the end of the user's process does
    assert gone(worker.pid)


def test_workers_end_with_their_host(opening, tmp_path):
    host = WorkerHost(tmp_path / "host.log")
    worker = Worker(host.socket, opening)
    host.close()
    assert gone(worker.pid)
    assert not os.path.exists(host.socket)
    worker.kill()
    with pytest.raises(WorkerError, match="does not answer"):
        Worker(host.socket, opening)


def test_mistakes_of_the_user_keep_their_words(host, opening, tmp_path):
    opening["experiment"]["training"]["learning_rate"] = -1
    with pytest.raises(UserError, match=r"'training\.learning_rate' is -1"):
        Worker(host.socket, opening)


def test_other_weights_are_refused(host, opening, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"something else")
    opening["site"]["backbone"] = str(other)
    worker = Worker(host.socket, opening)
    _, initial = worker.call("initial_state")
    with pytest.raises(BackboneMismatch, match=r"file of this site has SHA-256 .*, but the experiment needs"):
        worker.call("train", {"round": 0, "since": 0}, initial)
    worker.kill()


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is prepared")
def test_what_a_host_has_prepared(opening, tiny_weights, tmp_path):
    """It is the same as what a worker makes for itself, and its workers need the backbone's file no more."""
    own = tmp_path / "weights.safetensors"
    own.write_bytes(tiny_weights.read_bytes())
    opening["site"]["backbone"] = str(own)
    work: Work = {"experiment": opening["experiment"], "site": opening["site"]}
    results = []
    for given in (None, work):
        host = WorkerHost(tmp_path / "host.log", given)
        worker = Worker(host.socket, opening)
        if given:
            own.unlink()
        exchange, _ = worker.call("exchange")
        _, initial = worker.call("initial_state")
        report, trained = worker.call("train", {"round": 0, "since": 0}, initial)
        results.append((exchange, initial, report["val"], trained))
        worker.kill()
        if given:
            opening["experiment"]["seed"] += 1  # another one has to be built
            other = Worker(host.socket, opening)
            with pytest.raises(UserError, match="which does not exist"):
                other.call("train", {"round": 0, "since": 0}, initial)
            other.kill()
        host.close()
    (exchange, initial, report, trained), again = results
    assert again[0] == exchange
    assert again[2] == report
    for tensors, others in ((initial, again[1]), (trained, again[3])):
        assert tensors.keys() == others.keys()
        assert all(np.array_equal(tensors[key], others[key]) for key in tensors)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it only seems to be there")
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_with_a_gpu_nothing_is_prepared(device, opening, tiny, monkeypatch):
    """Even if it is not used: autograd's threads for it would be missing in the forks. Nor if it is missed."""
    opening["site"]["device"] = device
    work: Work = {"experiment": opening["experiment"], "site": opening["site"]}
    for gpu in (True, False):
        monkeypatch.setattr(prepared, "_prepared", None)
        monkeypatch.setattr(prepared, "_finds_gpu", lambda place, gpu=gpu: gpu)
        prepared.prepare(work)
        assert (prepared.prepared_trainer(tiny, Site.model_validate(opening["site"])) is None) == (
            gpu or device == "cuda"
        )


@pytest.mark.parametrize(
    "damage", [lambda work: work["experiment"]["method"].update(name="none"), lambda work: work.update(site=[])]
)
def test_what_cannot_be_prepared_is_left_to_the_worker(damage, opening, tmp_path):
    work: Work = copy.deepcopy({"experiment": opening["experiment"], "site": opening["site"]})
    damage(work)
    host = WorkerHost(tmp_path / "host.log", work)
    with pytest.raises(UserError, match=r"method|site.json"):
        Worker(host.socket, cast(Opening, {**opening, **work}))  # pyright sees no TypedDict in a spread of two
    worker = Worker(host.socket, opening)
    assert worker.call("exchange")[0]["tensors"]
    worker.kill()
    host.close()
