"""Draws formula-driven images, on which the embedded backbone is pre-trained instead of photographs.

An image is a figure on a ground, and each of its parts is drawn by a formula picked from a fixed, seeded table; the
labels are the formulas' indices, so supervision is exact and free. The tables hold

- iterated function systems, drawn by the chaos game (Kataoka et al. 2020, "Pre-training without Natural Images");
- radial contours of nested harmonics (Kataoka et al. 2022, "Replacing Labeled Real-image Datasets with
  Auto-generated Contours");
- spectral noise through a pointwise function, which gives clouds, bands, cells and nets (Lewis 1989, "Algorithms for
  Solid Noise Synthesis"; used to learn vision by Baradad et al. 2021, "Learning to See by Looking at Noise");
- palettes of four colours.

A map of where the figure lies comes with each image, so that patches can be supervised too (Shinoda et al. 2023,
"SegRCDB: Semantic Segmentation via Formula-Driven Supervised Learning").
"""

from dataclasses import dataclass

import numpy as np

from pt_peft.seeds import derive_seed

FAMILIES = ("iterated function systems", "radial contours", "spectral noise", "palettes")
HEADS = ("figure", "fill", "ground", "palette")
"""The columns of the labels: the formula that drew the figure, its fill and the ground, and the palette."""
CELL = 8
"""Side of the squares of the figure's map, pixels."""

_MAPS = 4  # affine maps of an iterated function system
_CHAINS, _STEPS, _BURN_IN = 64, 36, 6  # parallel chaos games an image and their length
_HARMONICS = 6  # of a radial contour
_BATCH = 32  # images drawn at a time: their planes stay in the cache


@dataclass(frozen=True)
class Tables:
    """The formulas. The leading dimension of each array is the number of formulas of its kind.

    Attributes:
        maps: (systems, _MAPS, 2, 3) float32, affine maps of the iterated function systems.
        chances: (systems, _MAPS) float64, cumulative probability of each map.
        contours: (contours, _HARMONICS, 2) float32, cosine and sine amplitude of each harmonic.
        rings: (contours,) float32, how many nested lines a contour has inside.
        noises: (noises, 6) float32: frequency, bandwidth, slope, orientation, anisotropy, index of the function.
        palettes: (palettes, 4, 3) float32 in [0, 1]: two colours of the figure, two of the ground.
    """

    maps: np.ndarray
    chances: np.ndarray
    contours: np.ndarray
    rings: np.ndarray
    noises: np.ndarray
    palettes: np.ndarray

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of classes, one for each of ``HEADS``."""
        noises = len(self.noises)
        return (len(self.maps) + len(self.contours), noises, noises, len(self.palettes))


def make_tables(*, seed: int, systems: int = 32, contours: int = 32, noises: int = 36, palettes: int = 32) -> Tables:
    """Draws the formulas: a pure function of its arguments."""
    rng = np.random.default_rng(derive_seed(seed, "fractal tables"))
    maps, chances = zip(*(_system(rng) for _ in range(systems)), strict=True)
    decay = 1 / np.arange(1, _HARMONICS + 1) ** rng.uniform(0.4, 1.6, (contours, 1))
    amplitude = rng.normal(size=(contours, _HARMONICS, 2)) * decay[..., None]
    amplitude *= (rng.uniform(0.1, 0.5, contours) / np.abs(amplitude).sum((1, 2)) * 2)[:, None, None]
    noise = np.stack(
        [
            np.exp(rng.uniform(np.log(2), np.log(14), noises)),
            rng.uniform(0.15, 0.6, noises),
            rng.uniform(0.5, 2.5, noises),
            rng.uniform(0, np.pi, noises),
            rng.choice([0, 0, 2, 8], noises),
            np.arange(noises) % len(_FUNCTIONS),
        ],
        axis=1,
    )
    return Tables(
        np.stack(maps).astype(np.float32),
        np.stack(chances),
        amplitude.astype(np.float32),
        rng.integers(0, 5, contours).astype(np.float32),
        noise.astype(np.float32),
        rng.random((palettes, 4, 3), dtype=np.float32),
    )


def _system(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws an iterated function system whose attractor is neither a point nor a full disc.

    Every map is a contraction by its singular values (Anderson and Farrell 2022, "Improving Fractal Pre-training"), so
    no draw has to be rejected.
    """
    turn, skew = rng.uniform(0, 2 * np.pi, (2, _MAPS))
    major = rng.uniform(0.45, 0.8, _MAPS)
    minor = major * rng.uniform(0.3, 1, _MAPS) * rng.choice([-1, 1], _MAPS)

    def rotation(angle: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)

    scale = np.zeros((_MAPS, 2, 2))
    scale[:, 0, 0], scale[:, 1, 1] = major, minor
    linear = rotation(turn) @ scale @ rotation(skew)
    maps = np.concatenate([linear, rng.uniform(-1, 1, (_MAPS, 2, 1))], axis=2)
    weight = np.abs(major * minor) + 0.02
    return maps, np.cumsum(weight / weight.sum())


def draw(
    tables: Tables, *, seed: int, part: str, index: int, count: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws images of random formulas: a pure function of its arguments.

    Args:
        tables: the formulas to choose from.
        seed: the pre-training's seed.
        part: ``"train"`` or ``"val"``; parts share formulas and no image.
        index: which draw of its part.
        count: images.
        size: side, pixels; a multiple of ``CELL``.

    Returns:
        images, uint8 (count, size, size, 3); labels, int64 (count, len(HEADS)); and the figure's map, bool
        (count, size // CELL, size // CELL), true where the figure covers at least a third of the square.
    """
    rng = np.random.default_rng(derive_seed(seed, "fractals", part, index))
    labels = np.stack([rng.integers(0, n, count) for n in tables.sizes], axis=1)
    batches = [_draw_batch(rng, tables, labels[i : i + _BATCH], size) for i in range(0, count, _BATCH)]
    images, maps = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return images, labels, maps


def _draw_batch(
    rng: np.random.Generator, tables: Tables, labels: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    count = len(labels)
    mask = np.empty((count, size, size), np.float32)
    is_system = labels[:, 0] < len(tables.maps)
    mask[is_system] = _attractors(rng, tables, labels[is_system, 0], size)
    mask[~is_system] = _contours(rng, tables, labels[~is_system, 0] - len(tables.maps), size)
    colours = tables.palettes[labels[:, 3]] + rng.normal(0, 0.05, (count, 4, 3)).astype(np.float32)
    # A change of light: a class is the palette, not the absolute colour.
    colours = colours * rng.uniform(0.75, 1.25, (count, 1, 3)).astype(np.float32)
    figure = _blend(colours[:, 0], colours[:, 1], _noise(rng, tables.noises[labels[:, 1]], size))
    ground = _blend(colours[:, 2], colours[:, 3], _noise(rng, tables.noises[labels[:, 2]], size))
    image = ground + (figure - ground) * mask[:, None]
    image += rng.normal(0, 0.03, (count, 1, 1, 1)).astype(np.float32)
    image += rng.random(image.shape, dtype=np.float32) * np.float32(0.06) - np.float32(0.03)
    cells = mask.reshape(count, size // CELL, CELL, size // CELL, CELL).mean((2, 4)) > 1 / 3
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 1), cells


def _blend(a: np.ndarray, b: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Mixes (count, 3) and (count, 3) by (count, size, size) in [0, 1]: (count, 3, size, size)."""
    return a[:, :, None, None] + (b - a)[:, :, None, None] * amount[:, None]


def _attractors(rng: np.random.Generator, tables: Tables, which: np.ndarray, size: int) -> np.ndarray:
    """Plays chaos games of perturbed systems, randomly turned, scaled and placed: (count, size, size) in [0, 1]."""
    count = len(which)
    maps = tables.maps[which]
    maps = maps * rng.uniform(0.92, 1.08, maps.shape).astype(np.float32)
    flat = maps.reshape(count * _MAPS, 6)
    offset = np.arange(count)[:, None] * _MAPS
    point_x = np.zeros((count, _CHAINS), np.float32)
    point_y = np.zeros((count, _CHAINS), np.float32)
    xs = np.empty((_STEPS, count, _CHAINS), np.float32)
    ys = np.empty_like(xs)
    for step in range(_STEPS):
        chance = rng.random((count, _CHAINS))
        picked = np.zeros((count, _CHAINS), np.int64)
        for map_ in range(_MAPS - 1):
            picked += chance > tables.chances[which, map_, None]
        a, b, e, c, d, f = np.moveaxis(flat[picked + offset], -1, 0)
        point_x, point_y = a * point_x + b * point_y + e, c * point_x + d * point_y + f
        xs[step], ys[step] = point_x, point_y
    xs, ys = (np.moveaxis(v[_BURN_IN:], 0, 1).reshape(count, _CHAINS * (_STEPS - _BURN_IN)) for v in (xs, ys))
    xs, ys = xs - xs.mean(1, keepdims=True), ys - ys.mean(1, keepdims=True)
    extent = np.sqrt((xs**2 + ys**2).mean(1, keepdims=True)) + 1e-6
    angle = rng.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
    zoom = rng.uniform(0.17, 0.3, (count, 1)).astype(np.float32) * size / extent
    shift = rng.uniform(0.35, 0.65, (2, count, 1)).astype(np.float32) * size
    px = ((np.cos(angle) * xs - np.sin(angle) * ys) * zoom + shift[0]).astype(np.int64)
    py = ((np.sin(angle) * xs + np.cos(angle) * ys) * zoom + shift[1]).astype(np.int64)
    inside = (px >= 0) & (px < size) & (py >= 0) & (py < size)
    pixel = (np.arange(count)[:, None] * size + py) * size + px
    hits = np.bincount(pixel[inside], minlength=count * size * size).reshape(count, size, size).astype(np.float32)
    # A cross-shaped brush: single pixels would be lost among the noise.
    brush = hits.copy()
    brush[:, 1:] += hits[:, :-1]
    brush[:, :-1] += hits[:, 1:]
    brush[:, :, 1:] += hits[:, :, :-1]
    brush[:, :, :-1] += hits[:, :, 1:]
    return np.minimum(brush * 0.5, 1)


def _contours(rng: np.random.Generator, tables: Tables, which: np.ndarray, size: int) -> np.ndarray:
    """Draws perturbed radial contours with nested lines, randomly turned and placed: (count, size, size) in [0, 1]."""
    count = len(which)
    shift = rng.uniform(-0.3, 0.3, (2, count, 1, 1)).astype(np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, None, :] - shift[0], axis[None, :, None] - shift[1]
    angle = rng.uniform(0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    y = y * rng.uniform(1, 1.4, (count, 1, 1)).astype(np.float32)
    radius = np.sqrt(x * x + y * y) + 1e-6
    amplitude = tables.contours[which] * rng.uniform(0.85, 1.15, (count, _HARMONICS, 2)).astype(np.float32)
    cosine, sine = x / radius, y / radius
    real, imag = cosine, sine
    outline = np.ones_like(radius)
    for k in range(_HARMONICS):  # the k-th power of exp(i angle) gives cos and sin of k times the angle
        outline += amplitude[:, k, 0, None, None] * real + amplitude[:, k, 1, None, None] * imag
        real, imag = real * cosine - imag * sine, real * sine + imag * cosine
    outline *= rng.uniform(0.45, 0.85, (count, 1, 1)).astype(np.float32)
    level = radius / np.maximum(outline, 0.05)
    rings = tables.rings[which][:, None, None]
    lines = 0.7 + 0.3 * np.cos(2 * np.pi * np.minimum(level, 1) * rings)
    edge = np.clip((1 - level) * outline * (size / 4), 0, 1)
    return edge * lines


def _noise(rng: np.random.Generator, formula: np.ndarray, size: int) -> np.ndarray:
    """Draws noise with the formula's spectrum, through its pointwise function: (count, size, size) in [0, 1]."""
    count = len(formula)
    jitter = rng.uniform(0.93, 1.07, formula[:, :4].shape).astype(np.float32)
    frequency, width, slope, orientation = (v[:, None, None] for v in (formula[:, :4] * jitter).T)
    anisotropy = formula[:, 4, None, None]
    fy = np.fft.fftfreq(size, 1 / 64).astype(np.float32)[None, :, None]
    fx = np.fft.rfftfreq(size, 1 / 64).astype(np.float32)[None, None, :]
    radius = np.sqrt(fx * fx + fy * fy) + 1e-3
    across = (fx * np.cos(orientation) + fy * np.sin(orientation)) / radius
    log_radius = np.log(radius)
    octaves = (log_radius - np.log(frequency)) / width
    band = np.exp(-0.5 * octaves * octaves)
    cloud = np.exp(-slope * log_radius)
    function = formula[:, 5].astype(int)
    amplitude = np.where((function == 0)[:, None, None], cloud, band) * np.exp(-anisotropy * (1 - across * across))
    amplitude[:, 0, 0] = 0
    white = rng.standard_normal((count, size, size), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(size, size)).astype(np.float32)
    field /= field.std((1, 2), keepdims=True) + 1e-6
    result = np.empty_like(field)
    for i, apply in enumerate(_FUNCTIONS):
        result[function == i] = apply(field[function == i])
    return np.clip(result, 0, 1)


_FUNCTIONS = (
    lambda z: 0.5 + 0.35 * z,  # clouds
    lambda z: 0.5 + 0.35 * z,  # bands and ripples
    lambda z: 1.2 - 3 * np.abs(z),  # nets: bright lines where the field changes its sign
    lambda z: 3 * (z - 0.8),  # blobs
    lambda z: 3 * (z - 0.2) + 0.5,  # patches
    lambda z: np.abs(z) * 0.6,  # cells
)
