"""The shapes and textures of the lesion images.

Only additions, products, quotients, square roots, roundings and comparisons touch the pixels: IEEE 754 fixes their
results to the last bit, but not those of sines and exponentials. So an image is the same on every machine.

Fields are float32 (count, size, size); parameters of one number an image are (count, 1, 1).
"""

import numpy as np
from numpy.random import Generator


def uniform(rng: Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform random numbers in [low, high), float32."""
    return rng.random(shape, dtype=np.float32) * np.float32(high - low) + np.float32(low)


def step(value: np.ndarray) -> np.ndarray:
    """Rises smoothly from 0 at ``value`` <= 0 to 1 at ``value`` >= 1: 3 v^2 - 2 v^3."""
    value = np.clip(value, 0, 1)
    slope = 3 - 2 * value
    slope *= value
    slope *= value
    return slope


def mix(a: np.ndarray, b: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """``a`` where ``amount`` is 0, ``b`` where it is 1."""
    return a + (b - a) * amount


def lay(image: np.ndarray, colour: np.ndarray, amount: np.ndarray) -> None:
    """Covers ``image`` (count, 3, size, size) with ``colour`` (count or 1, 3) by ``amount`` (count, size, size)."""
    missing = colour[:, :, None, None] - image
    missing *= amount[:, None]
    image += missing


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, x (1, 1, size) and y (1, size, 1), from -1 to 1."""
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
    return axis[None, None, :], axis[None, :, None]


def direction(rng: Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """A random unit vector for each image, (count, 1, 1) twice; no sine needed."""
    t = uniform(rng, -1, 1, (count, 1, 1))
    quadrant = rng.integers(0, 4, (count, 1, 1))
    c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    odd, sign = quadrant % 2 == 1, np.where(quadrant < 2, np.float32(1), np.float32(-1))
    return np.where(odd, -s, c) * sign, np.where(odd, c, s) * sign


def noise(rng: Generator, count: int, size: int, cells: int) -> np.ndarray:
    """Value noise: random numbers on a lattice of ``cells`` x ``cells`` squares, smoothly between; in [-1, 1)."""
    lattice = uniform(rng, -1, 1, (count, cells + 1, cells + 1))
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size)
    low = np.minimum(at.astype(np.int64), cells - 1)
    weight = step(at - low)
    rows = mix(lattice[:, low], lattice[:, low + 1], weight[None, :, None])
    return mix(rows[:, :, low], rows[:, :, low + 1], weight[None, None, :])


def lines(position: np.ndarray, width: np.ndarray | float) -> np.ndarray:
    """Parallel lines at whole numbers of ``position``, of ``width`` in its unit: 1 on a line's middle, 0 off it."""
    distance = np.abs(position - np.floor(position + np.float32(0.5)))
    return step(1 - distance / width)


def dots(rng: Generator, x: np.ndarray, y: np.ndarray, share: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """At most one round dot in each unit square of (x, y), at a random place.

    Args:
        rng: source of the places.
        x: (count, size, size), any range; the pattern repeats every 16.
        y: likewise.
        share: (count, 1, 1), share of the squares that have a dot.
        radius: (count, 1, 1), below 0.5 so that no dot is cut by its square.
    """
    count = len(x)
    column, row = np.floor(x), np.floor(y)
    cell = (row.astype(np.int64) % 16) * 16 + column.astype(np.int64) % 16
    cell += np.arange(count)[:, None, None] * 256
    free = 0.5 - radius
    places = uniform(rng, -1, 1, (2, count, 16, 16)) * free
    present = uniform(rng, 0, 1, (count, 16, 16)) < share
    dx = x - column - np.float32(0.5) - places[0].ravel()[cell]
    dy = y - row - np.float32(0.5) - places[1].ravel()[cell]
    distance = np.sqrt(dx * dx + dy * dy)
    return step((1 - distance / radius) * 2) * present.ravel()[cell]


def rays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """cos(16 a) of the angle a of (x, y), by squaring the unit complex number four times."""
    radius = np.sqrt(x * x + y * y) + np.float32(1e-6)
    real, imaginary = x / radius, y / radius
    for _ in range(4):
        real, imaginary = real * real - imaginary * imaginary, 2 * real * imaginary
    return real
