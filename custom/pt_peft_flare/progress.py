"""How far a job is, for the lead who asks while it runs."""

import time
from collections.abc import Mapping, Sequence
from typing import TypedDict

from pt_peft.experiment.sections import Precision
from pt_peft_flare.round_file import RoundEntry
from pt_peft_flare.run_record import Record


class SiteProgress(TypedDict):
    """What one site has done so far."""

    now: str
    """``training``, ``evaluating``, ``counting`` images, ``silent for … s``, ``answered``, or why it is left out or not
    there."""
    version: str | None
    """Of the package at the site, by its last report, with ``other code`` if that is not the server's; null before."""
    precision: Precision | None
    """What it computed in, by its last report; null before."""
    rounds: int
    """Number of rounds of this job that it took part in."""
    bytes_in: int
    """Bytes of the payloads that it was sent in this job so far, raw tensors only."""
    bytes_out: int
    """Bytes of its payloads that were counted in this job, raw tensors only."""


class Progress(TypedDict):
    """What a job has done so far."""

    time: float
    """Seconds since 1970, of the server's clock."""
    experiment: str
    """Its name."""
    finished_rounds: int
    continues: str | None
    """The job whose rounds come first."""
    continued_rounds: int
    """Number of the finished rounds that were done in jobs which this one continues."""
    rounds: int
    finished_stages: int
    """Of statistics, by `pt_peft.experiment.statistics`."""
    stages: int
    seconds_left: float | None
    """By the last rounds; None before the second round of this job has ended, as every process starts up in the
    first."""
    sites: dict[str, SiteProgress]


LAST = 5
"""Rounds by which the next ones are judged."""


def progress(
    record: Record,
    finished: Sequence[RoundEntry],
    rounds: int,
    stages: int,
    now: Mapping[str, str],
    sent: Mapping[str, int],
) -> Progress:
    """Tells how far a job is.

    Args:
        record: the content of its ``metrics.json`` but for the rounds.
        finished: the rounds.
        rounds: number of all its rounds.
        stages: number of all its stages of statistics.
        now: what each of its sites does, see `SiteProgress`.
        sent: bytes of the payloads that each site was sent in this job; none for a site that is not named.
    """
    own = [one for one in finished if one["job"] == record["job"]]
    seconds = [one["seconds"] for one in own[1:][-LAST:]]
    return {
        "time": time.time(),
        "experiment": record["experiment"]["name"],
        "finished_rounds": len(finished),
        "continues": record["continues"],
        "continued_rounds": len(finished) - len(own),
        "rounds": rounds,
        "finished_stages": len({(one["when"], one["stage"]) for one in record["statistics"]}),
        "stages": stages,
        "seconds_left": (rounds - len(finished)) * sum(seconds) / len(seconds) if seconds else None,
        "sites": {
            name: _site_progress(name, record, own, what, sent.get(name, 0)) for name, what in sorted(now.items())
        },
    }


def counting(experiment: str, now: Mapping[str, str]) -> Progress:
    """Tells how far a job is that counts images: it has one stage and no rounds.

    Args:
        experiment: its name.
        now: what each site does.
    """
    sites: dict[str, SiteProgress] = {
        name: {"now": what, "version": None, "precision": None, "rounds": 0, "bytes_in": 0, "bytes_out": 0}
        for name, what in sorted(now.items())
    }
    return {
        "time": time.time(),
        "experiment": experiment,
        "finished_rounds": 0,
        "continues": None,
        "continued_rounds": 0,
        "rounds": 0,
        "finished_stages": 0,
        "stages": 1,
        "seconds_left": None,
        "sites": sites,
    }


def _site_progress(name: str, record: Record, own: list[RoundEntry], now: str, sent: int) -> SiteProgress:
    reports = [one["sites"][name] for one in own if name in one["sites"]]
    gathered = [one["sites"] for one in record["statistics"] if one["job"] == record["job"]]
    stages = [sites[name] for sites in gathered if name in sites]
    last = (reports or stages)[-1] if reports or stages else {}
    code = last.get("code")
    return {
        "now": now,
        "version": code and code["version"] + ("" if code == record["code"] else f", other code {code['source']}"),
        "precision": last.get("precision"),
        "rounds": len(reports),
        "bytes_in": sent,
        "bytes_out": sum(report["bytes_out"] for report in [*stages, *reports]),
    }
