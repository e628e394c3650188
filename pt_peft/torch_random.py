"""torch's random generators. torch does not annotate its own functions for them.

The CPU's are Mersenne twisters, of which torch sets the state by the lowest 32 bits of a seed: few enough to try them
all. A seed of more bits sets all of the state here.
"""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

_WORDS = slice(24, 24 + 8 * 624)
"""Where a generator's state has the twister's 624 words, each in 8 bytes."""


def seed_torch(seed: int) -> None:
    """Seeds the global generators of all devices.

    Args:
        seed: of up to 64 bits.
    """
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # its parameter has no type
    if seed >> 32:
        torch.set_rng_state(_filled(torch.get_rng_state(), seed))


def generator(seed: int) -> torch.Generator:
    """A generator of the CPU.

    Args:
        seed: of up to 64 bits.
    """
    made = torch.Generator().manual_seed(seed)
    if seed >> 32:
        made.set_state(_filled(made.get_state(), seed))
    return made


def _filled(state: torch.Tensor, seed: int) -> torch.Tensor:
    """`state`, uint8, of a generator that was just seeded, with words that depend on all of `seed`."""
    words = np.random.SeedSequence(seed).generate_state(624, np.uint32).astype(np.uint64)
    state[_WORDS] = torch.as_tensor(words.view(np.uint8))
    return state


@contextmanager
def cpu_generator_restored() -> Generator[None]:
    """Leaves the CPU's global generator as it was before."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
