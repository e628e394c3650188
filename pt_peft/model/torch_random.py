"""torch's global random generators. torch does not annotate its own functions for them."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


def seed_torch(seed: int) -> None:
    """Seeds the global generators of all devices."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # its parameter has no type


@contextmanager
def cpu_generator_restored() -> Generator[None]:
    """Leaves the CPU's global generator as it was before."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
