"""The random numbers of noise, and of what training leaves to chance. Imports no torch.

What can be computed from the experiment's seed protects nobody. Secret draws are the operating system's random bytes:
no seed exists that could leak, and draws that were seen tell nothing of others.
"""

import os

import numpy as np

from pt_peft.exchange.tensors import Array
from pt_peft.experiment.privacy import Privacy
from pt_peft.seeds import derive_seed


class Draws:
    """A source of secret random numbers."""

    def uniform(self, count: int) -> Array:
        """Uniform numbers, float64 (count,), multiples of 2^-53 in [0, 1)."""
        return (np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)) * 2.0**-53

    def normal(self, count: int) -> Array:
        """Normal numbers, float64 (count,), of mean 0 and standard deviation 1, by Box and Muller's transform."""
        radius, angle = self.uniform(2 * (pairs := -(-count // 2))).reshape(2, pairs)
        radius, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * angle
        return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]

    def seed(self) -> int:
        """A seed below 2^63, for a generator whose numbers need not be hard to predict from one another."""
        return int.from_bytes(os.urandom(8)) >> 1


class PublicDraws(Draws):
    """Random numbers that everybody can compute, for tests."""

    def __init__(self, seed: int):
        self._generator = np.random.default_rng(seed)

    def uniform(self, count: int) -> Array:
        """Uniform numbers, float64 (count,), in [0, 1)."""
        return self._generator.random(count)

    def seed(self) -> int:
        """A seed below 2^63."""
        return int(self._generator.integers(2**63))


def draws_for(privacy: Privacy, seed: int, purpose: str, *path: str | int, secret: bool = False) -> Draws:
    """The draws that ``privacy.randomness`` asks for.

    Args:
        privacy: the settings.
        seed: the experiment's, used only for ``insecure_from_public_seed``, as are the following.
        purpose: what is drawn, see `derive_seed`.
        *path: what tells these draws from others of the purpose.
        secret: whether they are secret whatever the settings say.
    """
    if secret or privacy.randomness == "secret":
        return Draws()
    return PublicDraws(derive_seed(seed, purpose, *path))


def training_seed(seed: int, purpose: str, *path: str | int, secret: bool) -> int:
    """The seed of what training leaves to chance.

    Args:
        seed: the experiment's, used unless the seed is secret, as are the following.
        purpose: what is drawn, see `derive_seed`.
        *path: what tells this draw from others of the purpose.
        secret: whether it is the site's alone, by ``limits.secret_draws``: 63 random bits.
    """
    return Draws().seed() if secret else derive_seed(seed, purpose, *path)
