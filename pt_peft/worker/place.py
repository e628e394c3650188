"""Where a worker computes: on which of the GPUs that its user sees, or on the CPU. Imports no torch."""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from pt_peft.environment import VISIBLE

ORDER = "CUDA_DEVICE_ORDER"
VARIABLES = (VISIBLE, ORDER)
"""Environment variables with the GPUs that a process sees, and how these are numbered. CUDA reads them once, when the
process first asks for a GPU."""


class Place(NamedTuple):
    """Where a worker computes."""

    visible: tuple[tuple[str, str], ...] = ()
    """Those of `VARIABLES` that are set, with their values."""
    gpu: int | None = None
    """Which of the GPUs that they show, from 0; None for the CPU."""

    def show(self) -> None:
        """Lets this process see the GPUs that the place's user sees. Too late for one that has asked for a GPU."""
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(self.visible)

    def fields(self) -> dict[str, object]:
        """As it travels, the first frame on a connection."""
        return {"visible": dict(self.visible), "gpu": self.gpu}


def read_place(fields: Mapping[str, Any]) -> Place:
    """Undoes `Place.fields`. Raises an error of any kind if `fields` are not such."""
    return Place(_those_set(fields["visible"]), fields["gpu"])


def own_place(site: object) -> Place:
    """Where a worker of this process computes for a site: it sees the GPUs that this process sees.

    Args:
        site: the site's settings as JSON. What is wrong with them the worker says.
    """
    visible = _those_set(os.environ)
    device = cast(Mapping[str, object], site).get("device") if isinstance(site, Mapping) else None
    if device == "cpu":
        return Place(visible)
    number = re.fullmatch(r"cuda:(\d+)", str(device))
    return Place(visible, int(number[1]) if number else 0)


def _those_set(variables: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, variables[name]) for name in VARIABLES if name in variables)
