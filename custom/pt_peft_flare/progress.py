"""How far a job is, for the lead who asks while it runs."""

import time
from collections.abc import Iterable

from pt_peft_flare.round_results import RoundResults


def progress(record: dict, rounds: int, sites: Iterable[str], results: RoundResults) -> dict:
    """What is known at the server, from the content of ``metrics.json`` and the results of the present task.

    Returns:
        ``time`` (seconds since 1970, of the server's clock), ``experiment``, ``finished_rounds``, ``rounds``,
        ``seconds_left`` (None before the first round has ended) and for
        each of the ``sites``: ``now`` (``working``, ``answered`` or why it is left out), ``rounds`` it took part in, and
        its ``bytes_in`` and ``bytes_out`` so far (raw tensors).
    """
    finished = record["rounds"]
    seconds = [one["seconds"] for one in finished]
    return {
        "time": time.time(),
        "experiment": record["experiment"]["name"],
        "finished_rounds": len(finished),
        "rounds": rounds,
        "seconds_left": (rounds - len(finished)) * sum(seconds) / len(seconds) if seconds else None,
        "sites": {
            name: _site(name, [one["sites"][name] for one in finished if name in one["sites"]], results)
            for name in sites
        },
    }


def _site(name: str, reports: list[dict], results: RoundResults) -> dict:
    answered = "answered" if name in results.reports else "working"
    return {
        "now": results.left_out.get(name, answered),
        "rounds": len(reports),
        "bytes_in": sum(report["bytes_in"] for report in reports),
        "bytes_out": sum(report["bytes_out"] for report in reports),
    }
