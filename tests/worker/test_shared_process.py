"""One process answers all users, as where they share a GPU: the same results, and no user's end is another's."""

import os
import signal
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from helpers import changed, gone
from pt_peft import reasons
from pt_peft.environment import VISIBLE
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.reasons import read_reason
from pt_peft.worker import frames, prepared
from pt_peft.worker.answering import answer
from pt_peft.worker.handle import Patience, Worker, WorkerError
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.place import own_place
from pt_peft.worker.request_handler import RequestHandler
from pt_peft.worker.requests import Opening

FIRST = {"round": 0, "since": 0}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = WorkerHost(tmp_path_factory.mktemp("shared host") / "host.log", shared=True)
    yield host
    host.close()


@pytest.fixture
def opening(tiny, tiny_weights, tmp_path):
    site = Site(limits=Limits.open(), backbone=str(tiny_weights), cache=str(tmp_path / "cache"))

    def of(name: str, experiment=tiny, folder: str = "run") -> Opening:
        return {
            "experiment": experiment.model_dump(mode="json"),
            "site": site.model_dump(mode="json"),
            "name": name,
            "names": ["site-1", "site-2"],
            "run_dir": str(tmp_path / folder / name),
            "continues": None,
            "threads": 1,
        }

    return of


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_sites_train_as_in_processes_of_their_own(host, shared_host, opening, tmp_path):
    workers = {name: Worker(host.socket, opening(name)) for name in ("site-1", "site-2")}
    assert workers["site-1"].pid == workers["site-2"].pid
    _, initial = workers["site-1"].call("initial_state")
    found, at_once = {}, []

    def train(name, worker):
        found[name] = worker.call("train", FIRST, initial)

    for name, worker in workers.items():
        at_once.append(threading.Thread(target=train, args=(name, worker)))
        at_once[-1].start()
    for thread in at_once:
        thread.join(60)
    for name in workers:
        alone = Worker(shared_host.socket, opening(name, folder="alone"))
        report, tensors = alone.call("train", FIRST, initial)
        assert same(found[name][1], tensors)
        for field in ("val", "train_loss", "num_samples"):
            assert found[name][0][field] == report[field]
        alone.kill()
        log = (tmp_path / "run" / name / "worker.log").read_text()
        assert f"site {name}, train: 40 images" in log
        assert log.count("images (") == 3  # of no other site
    for worker in workers.values():
        worker.kill()


def test_a_mistake_at_one_site_is_its_own(host, opening, tmp_path):
    other = Worker(host.socket, opening("site-2"))
    wrong = opening("site-1")
    wrong["experiment"]["training"]["learning_rate"] = -1
    with pytest.raises(UserError, match=r"'training\.learning_rate' is -1"):
        Worker(host.socket, wrong)
    (tmp_path / "file").touch()
    wrong = opening("site-1")
    wrong["run_dir"] = str(tmp_path / "file" / "run")
    with pytest.raises(WorkerError, match="died during open"):
        Worker(host.socket, wrong)
    broken = Worker(host.socket, opening("site-1"))
    with pytest.raises(WorkerError, match="KeyError"):
        broken.call("train", {}, {})
    broken.kill()
    assert other.call("exchange")[0]["tensors"]
    other.kill()


@pytest.mark.parametrize(
    "sent",
    [[], None, {}, {"request": "train"}, {"request": "open"}, {"request": "open", "threads": 0, "run_dir": "run"}],
    ids=str,
)
def test_what_is_no_request_ends_its_own_connection_alone(sent, host, opening, tmp_path):
    """Its error is in the host's log: that of the site which was answered before is another's."""
    other = Worker(host.socket, opening("site-1"))
    if sent and "run_dir" in sent:
        sent["run_dir"] = str(tmp_path / "run" / "site-2")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(host.socket)
        frames.send(connection, own_place({}).fields())
        assert frames.receive(connection)[0]["pid"] == other.pid
        frames.send(connection, sent)
        with pytest.raises(EOFError):
            frames.receive(connection)
    assert other.call("initial_state")[1]
    assert "Traceback" not in (tmp_path / "run" / "site-1" / "worker.log").read_text()
    other.kill()


def test_a_user_who_goes_stops_its_own_request(host, opening, tiny):
    """Even in the middle of it; others wait no longer than that."""
    long = changed(tiny, training={"local_epochs": 1000})
    leaving, other = Worker(host.socket, opening("site-1", long)), Worker(host.socket, opening("site-2"))
    _, initial = other.call("initial_state")
    with pytest.raises(WorkerError, match="did not finish train within 1 s"):
        leaving.call("train", FIRST, initial, Patience(1))
    started = time.monotonic()
    report, _ = other.call("train", FIRST, initial)
    assert report["num_samples"] == 40
    assert time.monotonic() - started < 30
    again = Worker(host.socket, opening("site-1"))
    assert again.pid == other.pid
    for worker in (again, other):
        worker.kill()


def test_a_process_that_dies_is_replaced(host, opening):
    worker = Worker(host.socket, opening("site-1"))
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="died during exchange"):
        worker.call("exchange")
    again = Worker(host.socket, opening("site-1"))
    assert again.pid != worker.pid
    assert again.call("exchange")[0]["tensors"]
    os.kill(host._process.pid, signal.SIGKILL)
    assert gone(again.pid), "nobody else would end it"
    again.kill()


@pytest.fixture
def workers(opening, monkeypatch):
    """Handlers of two sites in one process, which may have prepared for them."""
    monkeypatch.setattr(prepared, "_prepared", None)
    handlers = [RequestHandler(), RequestHandler()]
    for number, handler in enumerate(handlers, start=1):
        handler.open(opening(f"site-{number}"), {})
    return handlers


def test_sites_with_one_experiment_share_a_trainer(workers, opening, tiny):
    first, second = (handler._trainer for handler in workers)
    assert first is second
    other = RequestHandler()
    other.open(opening("site-1", changed(tiny, seed=5)), {})
    assert other._trainer is not first


@pytest.mark.parametrize(("forks", "gpu"), [(True, True), (True, False), (False, True)])
def test_a_process_that_does_not_fork_prepares_with_a_gpu(forks, gpu, workers, opening, monkeypatch):
    monkeypatch.setattr(prepared, "_finds_gpu", lambda place: gpu)
    opened = opening("site-1")
    prepared.prepare({"experiment": opened["experiment"], "site": opened["site"]}, forks=forks)
    ready = [handler._prepared for handler in workers]
    assert (ready[0] is not None) == (not (forks and gpu))
    assert ready[0] is ready[1]


@pytest.mark.parametrize(
    ("device", "gpu", "expected"),
    [("auto", True, True), ("cuda:1", True, True), ("cpu", True, False), ("auto", False, False)],
)
def test_when_one_process_answers_all(device, gpu, expected, monkeypatch):
    monkeypatch.setattr(prepared, "_finds_gpu", lambda place: gpu)
    assert prepared.computes_on_gpu(own_place({"device": device})) == expected
    assert prepared.computes_on_gpu(own_place(None)) == gpu


def test_what_is_prepared_does_not_stand_in_for_a_gpu_that_is_missed(workers, opening, monkeypatch):
    opened = opening("site-1")
    prepared.prepare({"experiment": opened["experiment"], "site": opened["site"]}, forks=False)
    assert workers[0]._prepared
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(VISIBLE, "0")
    with pytest.raises(UserError, match=f"torch finds no GPU with {VISIBLE}=0"):
        workers[0]._trainer  # noqa: B018


def test_a_gpu_that_is_too_small_is_told_in_a_sentence():
    def fails(*_):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which …"
        )

    handler = RequestHandler()
    handler.requests["train"] = fails
    reply: Any = answer(handler, {"request": "train"}, {})[0]
    assert reply["error"]["arguments"] == [
        "the GPU's memory, or the site's share of it, is too small for this job (CUDA out of memory); a smaller "
        "training.batch_size, or a larger 'gpu_memory_share' in site.json, would be right"
    ]
    assert read_reason(reply["error"]["reason"]) == reasons.OutOfMemory()
