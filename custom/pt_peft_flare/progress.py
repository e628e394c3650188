"""How far a job is, for the lead who asks while it runs."""

import time
from collections.abc import Iterable
from typing import TypedDict

from pt_peft.schema import Strict
from pt_peft_flare.round_results import RoundResults
from pt_peft_flare.run_record import Record


class SiteProgress(TypedDict):
    """What one site has done so far."""

    now: str
    """``working``, ``answered`` or why it is left out."""
    version: str | None
    """Of the package at the site, by its last report, with ``other code`` if that is not the server's; null before."""
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


def progress(record: Record, rounds: int, sites: Iterable[str], results: RoundResults[Strict]) -> Progress:
    """Tells how far a job is.

    Args:
        record: the content of its ``metrics.json``.
        rounds: number of all its rounds.
        sites: names of its sites.
        results: those of the present task.
    """
    finished = record["rounds"]
    seconds = [one["seconds"] for one in finished]
    return {
        "time": time.time(),
        "experiment": record["experiment"]["name"],
        "finished_rounds": len(finished),
        "rounds": rounds,
        "seconds_left": (rounds - len(finished)) * sum(seconds) / len(seconds) if seconds else None,
        "sites": {name: _site_progress(name, record, results) for name in sites},
    }


def _site_progress(name: str, record: Record, results: RoundResults[Strict]) -> SiteProgress:
    reports = [one["sites"][name] for one in record["rounds"] if name in one["sites"]]
    answered = "answered" if name in results.reports else "working"
    code = reports[-1]["code"] if reports else None
    return {
        "now": str(results.left_out.get(name, answered)),
        "version": code and code["version"] + ("" if code == record["code"] else f", other code {code['source']}"),
        "rounds": len(reports),
        "bytes_in": sum(report["bytes_in"] for report in reports),
        "bytes_out": sum(report["bytes_out"] for report in reports),
    }
