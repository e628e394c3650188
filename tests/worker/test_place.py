"""A worker computes on the GPU that its user was given; GPUs are made up (`fake_gpus`), or real where there are."""

import os
import signal
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pt_peft.environment import VISIBLE
from pt_peft.errors import UserError
from pt_peft.experiment.limits import Limits
from pt_peft.experiment.site import Site
from pt_peft.worker import frames
from pt_peft.worker.handle import Worker, WorkerError
from pt_peft.worker.host_process import WorkerHost
from pt_peft.worker.place import ORDER, Place, own_place, read_place
from pt_peft.worker.requests import Opening

FIRST = {"round": 0, "since": 0}


@pytest.fixture
def opening(tiny, tiny_weights, tmp_path):
    def of(folder: str, device: str = "auto") -> Opening:
        site = Site(limits=Limits.open(), backbone=str(tiny_weights), cache=str(tmp_path / "cache"), device=device)
        return {
            "experiment": tiny.model_dump(mode="json"),
            "site": site.model_dump(mode="json"),
            "name": "site-1",
            "names": ["site-1", "site-2"],
            "run_dir": str(tmp_path / folder),
            "continues": None,
            "threads": 1,
        }

    return of


@pytest.fixture
def seen(monkeypatch):
    """Sets the GPUs that this process sees; None for all."""

    def see(visible: str | None) -> None:
        if visible is None:
            monkeypatch.delenv(VISIBLE, raising=False)
        else:
            monkeypatch.setenv(VISIBLE, visible)

    return see


def computed_on(folder: Path) -> str:
    return (folder / "worker.log").read_text().partition("site site-1 computes on ")[2].partition("\n")[0]


def test_each_user_computes_on_the_gpu_that_it_was_given(two_gpu_host, opening, seen, tmp_path):
    host, folder = two_gpu_host
    given = {
        "first": ("0", "auto", "cuda:0 (fake 0, CUDA_VISIBLE_DEVICES 0)"),
        "second": ("1", "auto", "cuda:0 (fake 1, CUDA_VISIBLE_DEVICES 1)"),
        "the same": ("1", "cuda", "cuda:0 (fake 1, CUDA_VISIBLE_DEVICES 1)"),
        "by its number": (None, "cuda:1", "cuda:1 (fake 1)"),
        "by its number among others": ("1,0", "cuda:1", "cuda:1 (fake 0, CUDA_VISIBLE_DEVICES 1,0)"),
        "none": ("1", "cpu", "cpu"),
        "hidden": ("-1", "auto", "cpu"),
    }
    workers, trained = {}, {}
    for name, (visible, device, expected) in given.items():
        seen(visible)
        workers[name] = Worker(host.socket, opening(name, device))
        trained[name] = workers[name].call("train", FIRST, workers[name].call("initial_state")[1])[1]
        assert computed_on(tmp_path / name) == expected
        assert all(np.array_equal(trained[name][key], value) for key, value in trained["first"].items())
    assert len({worker.pid for worker in workers.values()}) == len(given) - 1
    assert workers["second"].pid == workers["the same"].pid
    assert [name for name, worker in workers.items() if not worker._shared] == ["none", "hidden"]
    asked = (folder / "asked").read_text().split()
    assert str(workers["first"].pid) in asked
    assert str(host._process.pid) not in asked, "its forks could then use no GPU"

    os.kill(workers["first"].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="died during exchange"):
        workers["first"].call("exchange")
    assert workers["second"].call("exchange")
    seen("0")
    again = Worker(host.socket, opening("again"))
    assert again.pid != workers["first"].pid
    for worker in (*workers.values(), again):
        worker.kill()


@pytest.mark.parametrize(
    ("visible", "device", "sentence"),
    [
        ("7", "auto", "is 'auto', but torch finds no GPU with CUDA_VISIBLE_DEVICES=7; GPUs of this machine there, or"),
        ("0", "cuda:1", "is 'cuda:1', but the last GPU that torch finds here with CUDA_VISIBLE_DEVICES=0 is 'cuda:0'."),
        (None, "cuda:2", "is 'cuda:2', but the last GPU that torch finds here is 'cuda:1'."),
    ],
)
def test_a_gpu_that_is_not_there_is_said_in_a_sentence(visible, device, sentence, two_gpu_host, opening, seen):
    seen(visible)
    worker = Worker(two_gpu_host[0].socket, opening("run", device))
    _, initial = worker.call("initial_state")
    with pytest.raises(UserError, match=r"site\.json: field 'device'") as found:
        worker.call("train", FIRST, initial)
    assert sentence in str(found.value)
    worker.kill()


def test_a_connection_that_went_to_a_dying_process_is_made_again(opening, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        places = []

        def serve():
            for lives in (False, True):
                connection, _ = listener.accept()
                with connection:
                    places.append(read_place(frames.receive(connection)[0]))
                    if lives:
                        frames.send(connection, {"pid": 1, "shared": True})
                        frames.receive(connection)
                        frames.send(connection, {})

        serving = threading.Thread(target=serve)
        serving.start()
        worker = Worker(str(tmp_path / "socket"), opening("run", "cuda:3"))
        serving.join(10)
        worker.kill()
    assert places == [own_place({"device": "cuda:3"})] * 2


def test_places(seen, monkeypatch):
    seen("4,GPU-a")
    monkeypatch.setenv(ORDER, "PCI_BUS_ID")
    visible = ((VISIBLE, "4,GPU-a"), (ORDER, "PCI_BUS_ID"))
    for site, gpu in (({"device": "cuda:12"}, 12), ({"device": "cpu"}, None), ({"device": "x"}, 0), ({}, 0), ([], 0)):
        place = own_place(site)
        assert place == read_place(place.fields()) == Place(visible, gpu)
    seen(None)
    monkeypatch.setenv(ORDER, "FASTEST_FIRST")
    place.show()
    assert own_place({}) == place
    with pytest.raises(KeyError):
        read_place({})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_worker_of_a_real_gpu(opening, seen, tmp_path):
    """Not run where there is none. The host has none of the GPU's files open."""
    seen("0")
    host = WorkerHost(tmp_path / "host.log")
    worker = Worker(host.socket, opening("run"))
    worker.call("train", FIRST, worker.call("initial_state")[1])
    name = torch.cuda.get_device_name(0)
    assert computed_on(tmp_path / "run") == f"cuda:0 ({name}, CUDA_VISIBLE_DEVICES 0)"

    def gpu_files(pid: int) -> list[str]:
        opened = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
        return [one for one in opened if one.startswith("/dev/nvidia")]

    assert gpu_files(worker.pid)
    assert not gpu_files(host._process.pid)
    worker.kill()
    host.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds no two GPUs")
def test_two_real_gpus(opening, seen, tmp_path):
    host = WorkerHost(tmp_path / "host.log")
    workers = []
    for number in ("0", "1"):
        seen(number)
        workers.append(Worker(host.socket, opening(number)))
        workers[-1].call("train", FIRST, workers[-1].call("initial_state")[1])
        assert computed_on(tmp_path / number).endswith(f", CUDA_VISIBLE_DEVICES {number})")
    assert workers[0].pid != workers[1].pid
    for worker in workers:
        worker.kill()
    host.close()
