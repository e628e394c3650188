"""What a run reaches, and when."""

import statistics
from collections.abc import Sequence
from typing import TypedDict


class Point(TypedDict):
    """One aggregate of a run."""

    seconds: float
    """From the start of the command until it was written."""
    wire_bytes: int | None
    """Bytes over the loopback until then, protocol included; null where nothing is sent or counted."""
    val: float
    """Balanced accuracy on all sites' validation images together, float32."""


class Reached(TypedDict):
    """When a target was reached."""

    seconds: float
    megabytes: float | None
    """10^6 bytes over the loopback until then."""


def reached(curve: Sequence[Point], target: float) -> Reached | None:
    """The first aggregate whose validation reaches `target`; None if none does."""
    for point in curve:
        if point["val"] >= target:
            wire = point["wire_bytes"]
            megabytes = None if wire is None else wire / 1e6
            return {"seconds": point["seconds"], "megabytes": megabytes}
    return None


def median(runs: Sequence[Reached | None]) -> Reached | None:
    """The median of each field, each for itself; None if one of the runs has not reached the target."""
    known = [one for one in runs if one is not None]
    if not known or len(known) < len(runs):
        return None
    wires = [one["megabytes"] for one in known if one["megabytes"] is not None]
    return {
        "seconds": statistics.median(one["seconds"] for one in known),
        "megabytes": statistics.median(wires) if len(wires) == len(known) else None,
    }
