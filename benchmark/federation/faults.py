"""The faults that a federation on hosts of their own is put through, and what each one costs, with a stopwatch.

``python -m benchmark hosts`` runs each of them as a process of its own, in a network of its own.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmark.federation.lab import SERVER, Lab
from benchmark.federation.lead import wait
from benchmark.federation.network import mount_small_disk
from benchmark.federation.provisioned import ADMIN
from benchmark.measurements.provenance import provenance
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.files import write_atomically
from pt_peft.presets import demo

RESULT = "result.json"
"""File in the folder of a trial."""
SITES = ("hospital-1", "hospital-2", "hospital-3")
FAULTY = SITES[1]
"""The site that faults befall."""
ROUNDS = 8
USUAL = 3
"""Rounds before a fault, which say what a usual one takes."""
MANY = 1000
"""Rounds of a job that is stopped when the site is back."""
DEADLINE_S = 600
"""Deadline of a round, far beyond what any fault should cost."""
SITE_TIMEOUT_S = 60
"""Deadline of a site's own work in a round."""
BACK_S = 600
"""Within which a site must be back after its fault."""


def experiment(name: str, rounds: int) -> Experiment:
    """Some seconds of training a round on one thread."""
    fields = demo("lora_vpt")[0].model_dump(mode="json")
    fields["name"] = name
    fields["data"]["images_per_site"] = {"train": 64, "val": 16, "test": 16}
    fields["training"]["local_epochs"] = 2
    fields["federation"] |= {
        "rounds": rounds,
        "min_sites": 2,
        "round_timeout_s": DEADLINE_S,
        "site_timeout_s": SITE_TIMEOUT_S,
    }
    return Experiment.model_validate_json(json.dumps(fields))


class Trial:
    """One job with one fault.

    Attributes:
        lab: the federation.
        run: the job; its clone, once there is one.
        begun_s: when the fault began, in seconds since the job was submitted.
        ended_s: when it ended.
    """

    def __init__(self, lab: Lab, asked: Experiment):
        """Submits a job."""
        self.lab = lab
        self.begun_s: float | None = None
        self.ended_s: float | None = None
        self._begun_in = self._ended_in = MANY
        self._stopped = False
        self._ended_at: dict[int, float] = {}
        self._start = time.monotonic()
        self.run = lab.lead.submit(asked)
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._over = threading.Event()
        self._watch.start()

    def begin(self) -> None:
        """The fault begins now."""
        self.begun_s, self._begun_in = self._now(), self._round()

    def end(self) -> None:
        """The fault is over."""
        self.ended_s, self._ended_in = self._now(), self._round()

    def wait_until_back(self, site: str = FAULTY, seconds: float = BACK_S) -> None:
        """Waits until a result of the site is in a round that ended after the fault."""

        def back() -> bool:
            if self._is_back(site):
                return True
            if self.run.ended():
                raise UserError(f"the job has ended as {self.run.state} without {site}.")
            return False

        wait(back, seconds, f"a result of {site}")

    def go_on(self) -> None:
        """Submits the job again, which a death has broken off."""
        self.lab.lead.connect()
        self.lab.federation.wait_for(self.lab.lead.session)
        wait(self.run.ended, 60, "the job to be listed as ended")
        self.run = self.lab.lead.clone(self.run)

    def stop(self) -> None:
        """Has seen enough."""
        self.lab.lead.session.abort_job(self.run.job)
        self._stopped = True

    def _is_back(self, site: str) -> bool:
        return self._back(self.run.record()["rounds"], site) is not None

    def finish(self) -> dict[str, Any]:
        """Waits for the end of the job. Returns what the fault has cost."""
        record = self.run.finish()
        wall_s = self._now()
        self._over.set()
        self._watch.join()
        rounds = record.get("rounds", [])
        usual = [one["seconds"] for one in rounds if one["round"] < self._begun_in]
        after = [one for one in rounds if one["round"] >= self._begun_in]
        absent = [one["seconds"] for one in after if FAULTY not in one["sites"]]
        return {
            "state": self.run.state,
            "status": record.get("status"),
            "reason": record.get("reason"),
            "stopped": self._stopped,
            "continues": bool(record.get("continues")),
            "final_sites": len(record["final"]["sites"]) if record.get("final") else None,
            "wall_s": round(wall_s, 1),
            "fault_s": _difference(self.ended_s, self.begun_s),
            "usual_round_s": _median(usual),
            "longest_round_s": max((one["seconds"] for one in after), default=None),
            "later_round_s": max(absent[1:], default=None),
            "lost": sum(len(SITES) - len(one["sites"]) for one in rounds),
            "back_s": _difference(self._back(rounds, FAULTY), self.ended_s),
            "left_out": _counts(reason["sentence"] for one in rounds for reason in one["left_out"].values()),
            "ended_s": [round(self._when(one), 1) for one in rounds],
            "seconds": [round(one["seconds"], 2) for one in rounds],
            "took_part": [len(one["sites"]) for one in rounds],
        }

    def _now(self) -> float:
        return time.monotonic() - self._start

    def _round(self) -> int:
        """Number of the round that is under way."""
        return 1 + max({*self._ended_at, *(one["round"] for one in self.run.record()["rounds"])}, default=-1)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            for one in self.run.record()["rounds"]:
                self._ended_at.setdefault(one["round"], self._now())

    def _when(self, one: dict[str, Any]) -> float:
        """When a round ended; one that ended with the job, now."""
        return self._ended_at.get(one["round"], self._now())

    def _back(self, rounds: list[dict[str, Any]], site: str) -> float | None:
        """When the first round with `site` ended, of those that were not over when the fault was."""
        back = (self._when(one) for one in rounds if one["round"] >= self._ended_in and site in one["sites"])
        return next(back, None)


@dataclass(frozen=True)
class Fault:
    """How one is brought about."""

    what: str
    """What befalls whom."""
    act: Callable[[Trial], None]
    """Called when the job has been submitted; returns when the fault is over, or the job has been stopped."""
    rounds: int = ROUNDS
    before: Callable[[Lab], None] = field(default=lambda lab: None)
    """Called before the job is submitted."""
    absent: tuple[str, ...] = ()
    """Sites that are not there at first."""


def _nothing(trial: Trial) -> None:
    pass


def _training(trial: Trial) -> psutil.Process:
    """Waits for a usual round, and until the site's worker trains in it."""
    trial.run.wait_for_round(USUAL)
    return trial.run.wait_for_training(FAULTY)


def _worker_dies(trial: Trial) -> None:
    worker = _training(trial)
    trial.begin()
    worker.kill()
    trial.end()


def _worker_hangs(trial: Trial) -> None:
    worker = _training(trial)
    trial.begin()
    worker.suspend()
    wait(lambda: not worker.is_running(), 2 * SITE_TIMEOUT_S, "the end of the worker that hangs")
    trial.end()


def _process_dies(trial: Trial) -> None:
    _training(trial)
    trial.begin()
    trial.run.processes(FAULTY)[0].kill()
    trial.end()


def _process_hangs(trial: Trial) -> None:
    _training(trial)
    process = trial.run.processes(FAULTY)[0]
    trial.begin()
    process.suspend()
    trial.run.wait_for_round(USUAL + 1, DEADLINE_S)
    process.resume()
    trial.end()
    trial.wait_until_back()
    trial.stop()


def _parent_dies(trial: Trial) -> None:
    _training(trial)
    trial.begin()
    parent = next(one for one in trial.lab.federation.processes(FAULTY) if "client_train" in " ".join(one.cmdline()))
    parent.kill()
    trial.end()
    trial.wait_until_back()
    trial.stop()


def _power_lost(seconds: float) -> Callable[[Trial], None]:
    def act(trial: Trial) -> None:
        _training(trial)
        trial.begin()
        trial.lab.lose_power(FAULTY)
        time.sleep(seconds)
        trial.end()
        trial.lab.start(FAULTY)
        trial.wait_until_back()
        trial.stop()

    return act


def _late(trial: Trial) -> None:
    trial.run.wait_for_round(USUAL)
    trial.begin()
    trial.end()
    trial.lab.start(FAULTY)
    trial.wait_until_back()
    trial.stop()


def _slow(trial: Trial) -> None:
    """Its worker runs a tenth of the time, for one round."""
    worker = _training(trial)
    rounds = len(trial.run.record()["rounds"])
    trial.begin()
    while len(trial.run.record()["rounds"]) == rounds:
        try:
            worker.suspend()
            time.sleep(0.9)
            worker.resume()
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    trial.end()


def _cut(seconds: float) -> Callable[[Trial], None]:
    def act(trial: Trial) -> None:
        _training(trial)
        trial.begin()
        trial.lab.hosts[FAULTY].cut()
        time.sleep(seconds)
        trial.lab.hosts[FAULTY].mend()
        trial.end()
        trial.wait_until_back()
        trial.stop()

    return act


def _limited(megabits: float) -> Callable[[Lab], None]:
    return lambda lab: lab.hosts[SERVER].limit(megabits)


def _server_moves(trial: Trial) -> None:
    _training(trial)
    trial.begin()
    trial.lab.network.move_server()
    trial.end()
    trial.lab.lead.connect()
    for site in SITES:
        trial.wait_until_back(site)
    trial.stop()


def _server_dies(trial: Trial) -> None:
    trial.run.wait_for_round(USUAL)
    trial.begin()
    trial.lab.lose_power(SERVER)
    time.sleep(5)
    trial.end()
    trial.lab.start(SERVER)
    trial.go_on()


def _rolling(trial: Trial) -> None:
    trial.run.wait_for_round(USUAL)
    trial.begin()
    for site in SITES:
        trial.lab.shut_down(site)
        trial.end()
        trial.lab.start(site)
        trial.wait_until_back(site)
    trial.lab.shut_down(SERVER)
    trial.end()
    trial.lab.start(SERVER)
    trial.go_on()
    for site in SITES:
        trial.wait_until_back(site)
    trial.stop()


def _shut_out(trial: Trial) -> None:
    admin = trial.lab.federation.session(ADMIN)
    _training(trial)
    trial.begin()
    admin.disable_client(FAULTY)
    admin.close()


def _small_disk(lab: Lab) -> None:
    """The server's kit on a file system of its own."""
    kit = lab.federation.kit(SERVER)
    content = kit.with_name("server below")
    lab.lose_power(SERVER)
    shutil.copytree(kit, content, symlinks=True)
    mount_small_disk(kit, 64)
    shutil.copytree(content, kit, symlinks=True, dirs_exist_ok=True)
    lab.start(SERVER)
    lab.lead.connect()
    lab.federation.wait_for(lab.lead.session)


def _disk_full(trial: Trial) -> None:
    trial.run.wait_for_round(USUAL)
    trial.begin()
    filler = trial.lab.federation.kit(SERVER) / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError:
        pass
    wait(lambda: not trial.run.processes(SERVER), DEADLINE_S, "the end of the job")
    filler.unlink()
    trial.end()
    trial.go_on()


FAULTS: dict[str, Fault] = {
    "baseline": Fault("nothing", _nothing),
    "worker_dies": Fault("a site's worker is killed", _worker_dies),
    "worker_hangs": Fault("its worker hangs", _worker_hangs),
    "process_dies": Fault("its job process is killed", _process_dies),
    "process_hangs": Fault("its job process hangs for a round", _process_hangs, MANY),
    "parent_dies": Fault("its FLARE client is killed", _parent_dies, MANY),
    "power_lost_40": Fault("its host has no power for 40 s", _power_lost(40), MANY),
    "power_lost_200": Fault("its host has no power for 200 s", _power_lost(200), MANY),
    "late": Fault("it comes three rounds late", _late, MANY, absent=(FAULTY,)),
    "slow": Fault("it trains ten times slower for a round", _slow),
    "cut_5": Fault("its line is cut for 5 s", _cut(5), MANY),
    "cut_60": Fault("its line is cut for 60 s", _cut(60), MANY),
    "cut_300": Fault("its line is cut for 300 s", _cut(300), MANY),
    "rate_1": Fault("the server's line carries 1 Mbit/s", _nothing, before=_limited(1)),
    "rate_5": Fault("the server's line carries 5 Mbit/s", _nothing, before=_limited(5)),
    "server_moves": Fault("the server gets another address", _server_moves, MANY),
    "server_dies": Fault("the server has no power for 5 s; a clone continues", _server_dies),
    "rolling": Fault("every host is restarted in turn; a clone continues", _rolling, MANY),
    "shut_out": Fault("an admin shuts the site out", _shut_out),
    "disk_full": Fault("the server's disk is full; a clone continues", _disk_full, before=_small_disk),
}
"""All faults, by name; those in which a job is stopped have `MANY` rounds."""


def _counts(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _difference(end: float | None, begin: float | None) -> float | None:
    return None if end is None or begin is None else round(end - begin, 1)


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 2) if values else None


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Starts a federation, runs a job with one fault, and returns what it cost. `folder` takes all files."""
    fault = FAULTS[name]
    lab = Lab(folder, SITES, fault.absent)
    fault.before(lab)
    trial = Trial(lab, experiment(name, fault.rounds))
    missed = None
    try:
        fault.act(trial)
    except UserError as error:
        missed = str(error)
        if not trial.run.ended():
            trial.stop()
    return {"what": fault.what, "missed": missed, **trial.finish()}


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs one fault and writes its result."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.federation.faults", description=__doc__)
    parser.add_argument("folder", type=Path, help="takes kits, logs and results")
    parser.add_argument("name", choices=FAULTS)
    options = parser.parse_args(arguments)
    origin = provenance()
    result = {**measure(options.name, options.folder.resolve()), "provenance": origin}
    write_atomically(options.folder / RESULT, json.dumps(result).encode())


if __name__ == "__main__":
    # FLARE leaves threads behind, and all other processes here end with this one.
    code = main()
    sys.stdout.flush()
    os._exit(code or 0)
