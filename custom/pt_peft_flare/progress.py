"""How far a job is, for the lead who asks while it runs."""

import time
from collections.abc import Mapping
from typing import TypedDict

from pt_peft_flare.run_record import Record


class SiteProgress(TypedDict):
    """What one site has done so far."""

    now: str
    """``training``, ``evaluating``, ``silent for … s``, ``answered``, or why it is left out or not there."""
    rounds: int
    """Number of rounds it took part in."""
    bytes_in: int
    """Bytes of the payloads down, raw tensors only."""
    bytes_out: int
    """Bytes of the payloads up, raw tensors only."""


class Progress(TypedDict):
    """What a job has done so far."""

    time: float
    """Seconds since 1970, of the server's clock."""
    experiment: str
    """Its name."""
    finished_rounds: int
    rounds: int
    seconds_left: float | None
    """None before the first round has ended."""
    sites: dict[str, SiteProgress]


def progress(record: Record, rounds: int, now: Mapping[str, str]) -> Progress:
    """Tells how far a job is.

    Args:
        record: the content of its ``metrics.json``.
        rounds: number of all its rounds.
        now: what each of its sites does, see `SiteProgress`.
    """
    finished = record["rounds"]
    seconds = [one["seconds"] for one in finished]
    return {
        "time": time.time(),
        "experiment": record["experiment"]["name"],
        "finished_rounds": len(finished),
        "rounds": rounds,
        "seconds_left": (rounds - len(finished)) * sum(seconds) / len(seconds) if seconds else None,
        "sites": {name: _site_progress(name, record, what) for name, what in sorted(now.items())},
    }


def _site_progress(name: str, record: Record, now: str) -> SiteProgress:
    reports = [one["sites"][name] for one in record["rounds"] if name in one["sites"]]
    return {
        "now": now,
        "rounds": len(reports),
        "bytes_in": sum(report["bytes_in"] for report in reports),
        "bytes_out": sum(report["bytes_out"] for report in reports),
    }
