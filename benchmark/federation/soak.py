"""A long job under random faults on hosts of their own: what was lost, and what grew.

``python -m benchmark soak`` runs it as a process of its own, in a network of its own.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmark.federation.faults import RESULT
from benchmark.federation.lab import SERVER, Lab
from benchmark.federation.lead import wait
from benchmark.measurements.drift import drift, mean_drift
from benchmark.measurements.provenance import provenance
from benchmark.oracle.reference import federate, greatest_difference, load_sites, make_trainer
from pt_peft.commands.dispatch import command
from pt_peft.errors import UserError
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.files import write_atomically
from pt_peft.model.adapter_file import load_adapter
from pt_peft.presets import demo
from pt_peft_flare.persistor import FINAL

EVERY = 5
"""Rounds between faults."""
AT_ONCE = 2
"""Faults at the same time, each of another site."""
LOOK_S = 1.0
"""Seconds between looks at the job."""
SAMPLE_S = 10
"""Seconds between samples of memory and descriptors."""
WARM_UP_S = 120
"""Seconds of a process's life that are not fitted: it still imports, and its caches fill."""
POINTS = 120
"""Samples of a series that are kept in the result."""


@dataclass(frozen=True)
class Planned:
    """A fault to come."""

    round: int
    """Finished rounds before it."""
    kind: str
    """A key of `KINDS`."""
    site: str
    """Whom it befalls; the server for ``server_slow``."""
    seconds: float
    """How long it lasts, for those that last."""


@dataclass
class Done:
    """A fault that was brought about; times in seconds since the job was submitted."""

    planned: Planned
    begin_s: float
    end_s: float | None = None
    back_s: float | None = None
    """When the first round with the site ended after it."""


def plan(sites: Sequence[str], rounds: int, seed: int) -> list[Planned]:
    """Draws the faults: every kind and every site equally often, in random order."""
    draw = random.Random(seed)
    count = max(0, (rounds - 2) // EVERY - 1)

    def dealt(values: Sequence[str]) -> list[str]:
        dealt: list[str] = []
        while len(dealt) < count:
            dealt += draw.sample(values, len(values))
        return dealt[:count]

    return [
        Planned(EVERY * number, kind, SERVER if kind == "server_slow" else site, round(draw.uniform(5, 20), 1))
        for number, (kind, site) in enumerate(zip(dealt(list(KINDS)), dealt(list(sites)), strict=True), 1)
    ]


def experiment(sites: int, rounds: int) -> Experiment:
    """As little training as there can be: images of 32 pixels, two steps a round."""
    fields = demo("lora")[0].model_dump(mode="json")
    fields["name"] = "soak"
    fields["backbone"]["image_size"] = 32
    fields["data"] |= {"images_per_site": {"train": 64, "val": 16, "test": 16}, "augment": []}
    # A constant rate, so that a job that is stopped early is the beginning of the whole.
    fields["training"] |= {"batch_size": 32, "schedule": "constant"}
    fields["federation"] |= {
        "rounds": rounds,
        "min_sites": max(2, sites // 2),
        "round_timeout_s": 120,
        "site_timeout_s": 90,
    }
    return Experiment.model_validate_json(json.dumps(fields))


class Soak:
    """One job under faults."""

    def __init__(self, lab: Lab, asked: Experiment):
        """Submits the job."""
        self.lab = lab
        self.done: list[Done] = []
        self.ended_at: dict[int, float] = {}
        self.record: dict[str, Any] = {"rounds": []}
        self.samples = Samples(lab)
        self._start = time.monotonic()
        self._busy: set[str] = set()
        self._over = threading.Event()
        self.run = lab.lead.submit(asked)
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._look, self._sample)]
        for thread in self._threads:
            thread.start()

    def now(self) -> float:
        """Seconds since the job was submitted."""
        return time.monotonic() - self._start

    def go_through(self, planned: Sequence[Planned], seconds: float) -> None:
        """Brings the faults about, and waits for the end of the job, or for so many seconds, at which it is stopped."""
        left = list(planned)
        while not self._ended():
            if self.now() > seconds:
                self.lab.lead.session.abort_job(self.run.job)
                wait(self._ended, 120, "the end of the job", LOOK_S)
                break
            self._see_who_is_back()
            finished = len(self.record["rounds"])
            if left and left[0].round <= finished and left[0].site not in self._busy and len(self._busy) < AT_ONCE:
                self._begin(left.pop(0))
            time.sleep(LOOK_S)
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ended(self) -> bool:
        try:
            return self.run.ended()
        except Exception as error:  # FLARE's, of many kinds, if the server is too slow to answer
            print(f"{self.now():7.1f} s: the server does not answer ({error})", flush=True)
            self.lab.lead.connect()
            return False

    def _begin(self, planned: Planned) -> None:
        done = Done(planned, self.now())
        self.done.append(done)
        self._busy.add(planned.site)
        print(f"{done.begin_s:7.1f} s, {planned.round} rounds: {planned.kind} {planned.site}", flush=True)

        def act() -> None:
            try:
                KINDS[planned.kind](self, planned.site, planned.seconds)
            except (UserError, psutil.NoSuchProcess, IndexError) as error:
                print(f"        {planned.kind} {planned.site}: {error}", flush=True)
            done.end_s = self.now()

        threading.Thread(target=act, daemon=True).start()

    def _see_who_is_back(self) -> None:
        for done in self.done:
            if done.back_s is not None or done.end_s is None:
                continue
            if done.planned.site == SERVER:
                done.back_s = done.end_s
            else:
                done.back_s = next(
                    (
                        self.ended_at[one["round"]]
                        for one in self.record["rounds"]
                        if done.planned.site in one["sites"] and self.ended_at.get(one["round"], 0) >= done.end_s
                    ),
                    None,
                )
            if done.back_s is not None:
                self._busy.discard(done.planned.site)

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            record = self.run.record()
            if len(record["rounds"]) > len(self.record["rounds"]):
                for one in record["rounds"]:
                    self.ended_at.setdefault(one["round"], round(self.now(), 1))
                self.record = record

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.samples.take(self.now(), self.run.job)


def _kill_worker(soak: Soak, site: str, seconds: float) -> None:
    soak.run.wait_for_training(site).kill()


def _kill_process(soak: Soak, site: str, seconds: float) -> None:
    soak.run.processes(site)[0].kill()


def _lose_power(soak: Soak, site: str, seconds: float) -> None:
    soak.lab.lose_power(site)
    time.sleep(seconds)
    soak.lab.start(site)


def _cut(soak: Soak, site: str, seconds: float) -> None:
    soak.lab.hosts[site].cut()
    time.sleep(seconds)
    soak.lab.hosts[site].mend()


def _slow_server(soak: Soak, site: str, seconds: float) -> None:
    soak.lab.hosts[SERVER].limit(2)
    time.sleep(seconds)
    soak.lab.hosts[SERVER].limit(None)


KINDS: dict[str, Callable[[Soak, str, float], None]] = {
    "worker_killed": _kill_worker,
    "process_killed": _kill_process,
    "power_lost": _lose_power,
    "cut": _cut,
    "server_slow": _slow_server,
}
"""What may happen: a worker or a site's job process is killed; a site's host loses its power, or its line is cut, for
5 to 20 s; the server's line carries 2 Mbit/s for as long."""


@dataclass
class Series:
    """One process: times in seconds, private memory in bytes, open descriptors."""

    role: str
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)


class Samples:
    """Memory and descriptors of FLARE's processes and of the worker hosts."""

    def __init__(self, lab: Lab):
        """Begins without samples."""
        self._lab = lab
        self.series: dict[int, Series] = {}
        """By process id."""

    def take(self, now: float, job: str) -> None:
        """Takes a sample of all processes."""
        for name in (SERVER, *self._lab.federation.sites):
            for process in self._lab.federation.processes(name):
                with contextlib.suppress(psutil.Error, OSError):
                    role = _role(process, name, job)
                    if role:
                        one = self.series.setdefault(process.pid, Series(role))
                        memory, descriptors = _private(process.pid), process.num_fds()
                        one.seconds.append(round(now, 1))
                        one.memory.append(memory)
                        one.descriptors.append(descriptors)

    def summary(self) -> dict[str, Any]:
        """By role: how many processes lived long enough to be fitted, and the drift of each of the two."""
        found: dict[str, Any] = {}
        for role in ROLES:
            fits: dict[str, list[Any]] = {"mb": [], "descriptors": []}
            for one in (one for one in self.series.values() if one.role == role):
                kept = [place for place, when in enumerate(one.seconds) if when >= one.seconds[0] + WARM_UP_S]
                times = [one.seconds[place] for place in kept]
                for name, values in (("mb", [value / 1e6 for value in one.memory]), ("descriptors", one.descriptors)):
                    fit = drift(times, [values[place] for place in kept])
                    if fit:
                        fits[name].append(fit)
            entry: dict[str, Any] = {"processes": len(fits["mb"])}
            for name, each in fits.items():
                mean = mean_drift(each)
                entry[f"{name}_per_hour"] = mean and dict(
                    zip(("slope", "low", "high"), (round(value, 2) for value in mean), strict=True)
                )
            found[role] = entry
        return found

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """By role: the mean over its processes at each of `POINTS` times."""
        found: dict[str, dict[str, list[float]]] = {}
        for role in ROLES:
            at: dict[float, list[tuple[int, int]]] = defaultdict(list)
            for one in (one for one in self.series.values() if one.role == role):
                for when, memory, descriptors in zip(one.seconds, one.memory, one.descriptors, strict=True):
                    at[SAMPLE_S * round(when / SAMPLE_S)].append((memory, descriptors))
            times = sorted(at)[:: max(1, -(-len(at) // POINTS))]
            found[role] = {
                "s": times,
                "mb": [round(statistics.mean(memory for memory, _ in at[when]) / 1e6, 1) for when in times],
                "descriptors": [round(statistics.mean(count for _, count in at[when]), 1) for when in times],
            }
        return found


ROLES = ("server", "server's job", "site", "site's job", "worker host")
"""FLARE's parent process and job process at the server and at a site, and the host of its workers."""


def _role(process: psutil.Process, name: str, job: str) -> str | None:
    command = " ".join(process.cmdline())
    if "pt_peft.worker.host" in command:
        parent = process.parent()
        forked = parent is not None and "pt_peft.worker.host" in " ".join(parent.cmdline())
        return None if forked else "worker host"
    if "nvflare.private" not in command:
        return None
    return ("server" if name == SERVER else "site") + ("'s job" if job in command else "")


def _private(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def lost(soak: Soak, names: Sequence[str]) -> dict[str, Any]:
    """Counts the results that rounds lack, by why: the site says so, a fault explains it, or nothing does."""
    counts: dict[str, int] = defaultdict(int)
    unexplained: list[list[Any]] = []
    before = 0.0
    for one in soak.record["rounds"]:
        ended = soak.ended_at[one["round"]]
        for name in sorted(set(names) - one["sites"].keys()):
            fault = next((done.planned.kind for done in soak.done if _within(done, name, before, ended)), None)
            counts[fault or "no fault"] += 1
            if fault is None and name not in one["left_out"]:
                unexplained.append([one["round"], name])
        before = ended
    return {"by_fault": dict(sorted(counts.items())), "unexplained": len(unexplained), "which": unexplained}


def _within(done: Done, site: str, begin: float, end: float) -> bool:
    """Whether a fault touched `site` in the round from `begin` to `end`."""
    whom = done.planned.site in (site, SERVER)
    return whom and done.begin_s <= end and (done.back_s is None or done.back_s >= begin)


def difference(adapter: Path, asked: Experiment, record: dict[str, Any], names: list[str], cache: str) -> float:
    """How far the final adapter is from that of a plain loop in which every counted result is counted once.

    Args:
        adapter: what the federation ended with.
        asked: the job's experiment.
        record: its ``metrics.json``, which says who took part in which round.
        names: of all sites.
        cache: folder of images.
    """
    federation = asked.federation.model_copy(update={"rounds": len(record["rounds"])})
    asked = asked.model_copy(update={"federation": federation})
    absent = {(name, one["round"]) for one in record["rounds"] for name in names if name not in one["sites"]}
    site = Site(threads=1, cache=cache)
    expected = federate(make_trainer(asked, site), load_sites(asked, site, names), absent)
    return greatest_difference(load_adapter(adapter)[0], expected.tensors)


def measure(folder: Path, sites: int, rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Runs a soak.

    Args:
        folder: takes all files.
        sites: how many.
        rounds: of the job.
        seconds: after which it is stopped.
        seed: of the faults.
    """
    names = [f"hospital-{number:02}" for number in range(1, sites + 1)]
    asked, planned = experiment(sites, rounds), plan(names, rounds, seed)
    soak = Soak(Lab(folder, names), asked)
    soak.go_through(planned, seconds)
    downloaded = soak.run.finish()
    soak.record = downloaded if downloaded.get("rounds") else soak.record
    for one in soak.record["rounds"]:
        soak.ended_at.setdefault(one["round"], round(soak.now(), 1))
    counted = soak.record["rounds"]
    return {
        "sites": sites,
        "rounds": rounds,
        "seed": seed,
        "state": soak.run.state,
        "status": soak.record.get("status"),
        "wall_s": round(soak.now(), 1),
        "finished_rounds": len(counted),
        "in_order": [one["round"] for one in counted] == list(range(len(counted))),
        "least_sites": min((len(one["sites"]) for one in counted), default=0),
        "quorum": asked.federation.min_sites,
        "results": sum(len(one["sites"]) for one in counted),
        "expected_results": sites * len(counted),
        "lost": lost(soak, names),
        "difference": difference(soak.run.results / FINAL, asked, soak.record, names, str(folder / "cache")),
        "faults": [
            {"kind": done.planned.kind, "site": done.planned.site}
            | {
                name: None if value is None else round(value, 1)
                for name, value in (("begin_s", done.begin_s), ("end_s", done.end_s), ("back_s", done.back_s))
            }
            for done in soak.done
        ],
        "ended_s": [soak.ended_at[one["round"]] for one in counted],
        "took_part": [len(one["sites"]) for one in counted],
        "drift": soak.samples.summary(),
        "curves": soak.samples.curves(),
    }


@command
def main(arguments: list[str] | None = None) -> None:
    """Runs a soak and writes its result."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.federation.soak", description=__doc__)
    parser.add_argument("folder", type=Path, help="takes kits, logs and results")
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args(arguments)
    origin = provenance()
    result = measure(options.folder.resolve(), options.sites, options.rounds, 60 * options.minutes, options.seed)
    write_atomically(options.folder / RESULT, json.dumps({"provenance": origin, **result}).encode())


if __name__ == "__main__":
    # FLARE leaves threads behind, and all other processes here end with this one.
    code = main()
    sys.stdout.flush()
    os._exit(code or 0)
