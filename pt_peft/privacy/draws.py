"""Where noise, and the choice of images, come from. Imports no torch.

What can be computed from the experiment's seed protects nobody. Secret draws are the operating system's random bytes: no seed
exists that could be kept badly, and nothing of them can be told from what was seen of others.
"""

import os

import numpy as np

from pt_peft.experiment.privacy import Privacy
from pt_peft.seeds import derive_seed


class Draws:
    """A source of random numbers; this one is secret."""

    def uniform(self, count: int) -> np.ndarray:
        """float64 (count,), multiples of 2^-53 in [0, 1)."""
        return (np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int) -> np.ndarray:
        """float64 (count,), of mean 0 and deviation 1, by Box and Muller's transform."""
        radius, angle = self.uniform(2 * (pairs := -(-count // 2))).reshape(2, pairs)
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
        return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]

    def seed(self) -> int:
        """For a generator whose numbers need not be hard to predict from one another; below 2^63."""
        return int(self.uniform(1)[0] * 2**63)


class PublicDraws(Draws):
    """Numbers that everybody can compute: for tests."""

    def __init__(self, seed: int):
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> np.ndarray:
        return self._generator.random(count)


def draws_for(privacy: Privacy, seed: int, purpose: str, *path: str | int) -> Draws:
    """As the experiment says; its `seed`, `purpose` and `path` matter for ``insecure_from_public_seed`` alone."""
    return Draws() if privacy.randomness == "secret" else PublicDraws(derive_seed(seed, purpose, *path))
