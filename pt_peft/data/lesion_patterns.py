"""The patterns inside or around a lesion: one function each.

A pattern takes a generator of random numbers and the lesions that show it. It returns the paint, float32 (count or 1,
3) RGB in [0, 1], and how much of each pixel it covers, float32 (count, size, size) in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from pt_peft.data.lesion_fields import dots, lines, noise, rays, step, uniform


@dataclass(frozen=True)
class Lesion:
    """Lesions of a batch.

    Attributes:
        x: (count, size, size), the lesion's own coordinate: about -1 to 1 inside.
        y: likewise.
        level: (count, size, size), 0 at the centre and 1 on the border.
        body: (count, size, size), 1 inside, 0 outside, with a soft border.
        dark: (count, 3), a darker shade of the lesion's colour.
    """

    x: np.ndarray
    y: np.ndarray
    level: np.ndarray
    body: np.ndarray
    dark: np.ndarray

    @property
    def one(self) -> tuple[int, int, int]:
        """The shape of parameters of one number an image."""
        return (len(self.x), 1, 1)

    def noise(self, rng: Generator, cells: int) -> np.ndarray:
        """Value noise in the shape of the lesions, see `lesion_fields.noise`."""
        return noise(rng, len(self.x), self.x.shape[1], cells)

    def dots(
        self, rng: Generator, pitch: tuple[float, float], share: tuple[float, float], radius: tuple[float, float]
    ) -> np.ndarray:
        """Dots whose pitch, share and radius are drawn for each image between the bounds."""
        scale, shares, radii = (uniform(rng, *bounds, self.one) for bounds in (pitch, share, radius))
        return dots(rng, self.x * scale, self.y * scale, shares, radii)


Paint = tuple[np.ndarray, np.ndarray]
"""Colour and cover of a pattern, see the module."""


def _colour(red: float, green: float, blue: float) -> np.ndarray:
    """The same paint for all images, float32 (1, 3)."""
    return np.array([[red, green, blue]], np.float32)


def _blotches(rng: Generator, lesion: Lesion) -> Paint:
    """Dark patches."""
    return lesion.dark, 0.75 * step((lesion.noise(rng, 4) - 0.1) * 5) * lesion.body


def _network(rng: Generator, lesion: Lesion) -> Paint:
    """A mesh of brown lines."""
    bend, pitch = uniform(rng, 0.1, 0.5, lesion.one), uniform(rng, 2.5, 3.8, lesion.one)
    across = lines(lesion.x * pitch + bend * lesion.noise(rng, 6), 0.28)
    along = lines(lesion.y * pitch + bend * lesion.noise(rng, 6), 0.28)
    return lesion.dark, 0.8 * np.maximum(across, along) * lesion.body


def _globules(rng: Generator, lesion: Lesion) -> Paint:
    """Brown dots all over."""
    return lesion.dark, 0.85 * lesion.dots(rng, (2.2, 3.4), (0.6, 0.95), (0.28, 0.42)) * lesion.body


def _streaks(rng: Generator, lesion: Lesion) -> Paint:
    """Radial lines at the border."""
    rim = step((lesion.level - 0.55) * 5) * step((1.25 - lesion.level) * 5)
    return lesion.dark, 0.8 * step(rays(lesion.x, lesion.y) + lesion.noise(rng, 6)) * rim


def _veil(rng: Generator, lesion: Lesion) -> Paint:
    """A blue-white, confluent patch."""
    patch = step((lesion.noise(rng, 3) + 0.25) * 2) * step((1 - lesion.level) * 2.5)
    return _colour(0.5, 0.54, 0.66), 0.7 * patch


def _cysts(rng: Generator, lesion: Lesion) -> Paint:
    """Small, bright dots."""
    return _colour(0.93, 0.88, 0.76), 0.9 * lesion.dots(rng, (1.8, 2.8), (0.5, 0.8), (0.2, 0.34)) * lesion.body


def _plugs(rng: Generator, lesion: Lesion) -> Paint:
    """Dark, round openings."""
    return _colour(0.16, 0.1, 0.07), 0.85 * lesion.dots(rng, (1.8, 2.8), (0.5, 0.8), (0.22, 0.36)) * lesion.body


def _nests(rng: Generator, lesion: Lesion) -> Paint:
    """A few large, blue-grey, round patches."""
    return _colour(0.33, 0.35, 0.45), 0.85 * lesion.dots(rng, (1.2, 1.8), (0.6, 0.9), (0.28, 0.42)) * lesion.body


def _vessels(rng: Generator, lesion: Lesion) -> Paint:
    """Thin, red, bent lines."""
    thick, thin = (step(1 - np.abs(lesion.noise(rng, cells)) * sharp) for cells, sharp in ((5, 9), (8, 7)))
    return _colour(0.68, 0.1, 0.14), 0.85 * np.maximum(thick, thin) * step((1.15 - lesion.level) * 4)


def _scar(rng: Generator, lesion: Lesion) -> Paint:
    """A pale centre."""
    return _colour(0.9, 0.8, 0.76), 0.9 * step((uniform(rng, 0.45, 0.7, lesion.one) - lesion.level) * 6)


PATTERNS: dict[str, Callable[[Generator, Lesion], Paint]] = {
    "blotches": _blotches,
    "network": _network,
    "globules": _globules,
    "streaks": _streaks,
    "veil": _veil,
    "cysts": _cysts,
    "plugs": _plugs,
    "nests": _nests,
    "vessels": _vessels,
    "scar": _scar,
}
"""Every pattern, in the order in which they are painted."""
