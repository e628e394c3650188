"""As many workers compute at a time as there are places, and no place is lost."""

import os
import subprocess
import sys
import threading
import time

import pytest

from pt_peft.worker import turns
from pt_peft.worker.turns import PER_CORE, Turns


@pytest.fixture
def one_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})


def test_no_more_than_there_are_places(tmp_path, one_core):
    at_once, most, done = [0], [0], []
    lock = threading.Lock()

    def work():
        own = Turns(tmp_path)
        with own.turn():
            with lock:
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
            time.sleep(0.1)
            with lock:
                at_once[0] -= 1
        done.append(1)

    workers = [threading.Thread(target=work) for _ in range(3 * PER_CORE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert most[0] == PER_CORE
    assert len(done) == 3 * PER_CORE


def test_a_killed_worker_gives_its_turn_back(tmp_path, one_core):
    code = (
        "import os, sys, time; os.sched_getaffinity = lambda pid: {0}\n"
        "from pathlib import Path; from pt_peft.worker.turns import Turns\n"
        "with Turns(Path(sys.argv[1])).turn(): print('mine', flush=True); time.sleep(60)"
    )
    holders = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(PER_CORE)
    ]
    for holder in holders:
        assert holder.stdout
        assert holder.stdout.readline() == "mine\n"
    assert Turns(tmp_path)._free() is None
    for holder in holders:
        holder.kill()
        holder.communicate()
    started = time.monotonic()
    with Turns(tmp_path).turn():
        assert time.monotonic() - started < 5


def test_memory_goes_back_only_where_others_may_wait(tmp_path, one_core, monkeypatch):
    given = []
    monkeypatch.setattr(turns, "_give_memory_back", lambda: given.append(1))
    with Turns(tmp_path).turn():
        pass
    assert not given
    with Turns(tmp_path).turn(), Turns(tmp_path).turn():
        pass
    assert given == [1]


def test_a_failure_gives_the_turn_back(tmp_path, one_core):
    own = Turns(tmp_path)
    for _ in range(2 * PER_CORE):
        with pytest.raises(ValueError), own.turn():
            raise ValueError
