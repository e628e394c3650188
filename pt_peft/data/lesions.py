"""Images like those of a dermatoscope, drawn by formulas: the data of the demo and of the tests.

The classes differ in what a dermatologist looks for (Argenziano et al. 2003, "Dermoscopy of pigmented skin lesions"):
symmetry, border, number of colours, pigment network, globules, streaks, blue-white veil, cysts, vessels, a central
scar. No cue is always present, each also appears in other classes, and skin, light, hair and noise vary, so that no
single statistic decides. They are drawings, not medical data: they say nothing about a real lesion.
"""

from dataclasses import dataclass

import numpy as np

from pt_peft.data.lesion_fields import direction, grid, lay, mix, noise, step, uniform
from pt_peft.data.lesion_patterns import PATTERNS, Lesion
from pt_peft.errors import UserError
from pt_peft.seeds import derive_seed

_BATCH = 16  # images drawn at a time: their planes stay in the cache


@dataclass(frozen=True)
class Cues:
    """How a class looks. Pairs are the least and the greatest strength of a cue in an image.

    Attributes:
        asymmetry: shift and size of a second lobe, relative to the first.
        irregularity: amplitude of the border's waves, relative to the radius.
        softness: width of the border, relative to the radius.
        leading: patterns of which nearly every image shows at least one.
        shared: patterns that often show, and that may lead in another class.
    """

    asymmetry: tuple[float, float]
    irregularity: tuple[float, float]
    softness: tuple[float, float]
    leading: tuple[str, ...]
    shared: tuple[str, ...] = ()


_CUES = {
    "naevus": Cues((0, 0.25), (0.03, 0.12), (0.15, 0.45), ("network", "globules")),
    "melanoma": Cues((0.25, 0.7), (0.12, 0.32), (0.1, 0.4), ("streaks", "veil", "blotches"), ("network",)),
    "basal_cell_carcinoma": Cues((0, 0.5), (0.05, 0.24), (0.2, 0.5), ("vessels", "nests"), ("plugs",)),
    "dermatofibroma": Cues((0, 0.2), (0.03, 0.12), (0.35, 0.6), ("scar",), ("network",)),
    "seborrhoeic_keratosis": Cues((0, 0.45), (0.05, 0.2), (0.06, 0.25), ("cysts", "plugs"), ("blotches",)),
}
CLASSES: tuple[str, ...] = tuple(_CUES)
"""Class names; the first ``num_classes`` are drawn."""

_LEADS = 0.98  # probability that an image shows one of its class's leading patterns for certain
_TYPICAL, _STRAY = 0.3, 0.02  # probability of any other typical pattern, and of one that is not


def draw_lesions(
    *, seed: int, site: str, split: str, count: int, size: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one split of one site's images: a pure function of its arguments, byte for byte on every machine.

    Args:
        seed: the experiment's seed.
        site: the site's name. It alone fixes the site's camera and patients: white balance, skin tone, contrast, gamma
            and vignette.
        split: ``"train"``, ``"val"`` or ``"test"``; any name gives its own images.
        count: images, at least 1.
        size: side, pixels, at least 16.
        num_classes: how many of ``CLASSES``, from the first.

    Returns:
        images, uint8 (count, size, size, 3), RGB, and labels, int64 (count,). The classes' counts differ by at most
        one and their order is random.

    Raises:
        UserError: ``num_classes``, ``count`` or ``size`` is out of range.
    """
    if size < 16:
        raise UserError(f"size is {size}; lesion images are at least 16 pixels wide.")
    rng, labels = _start(seed, site, split, count, num_classes)
    look = _Look.of_site(site)
    images = np.empty((count, size, size, 3), np.uint8)
    for start in range(0, count, _BATCH):
        batch = slice(start, start + _BATCH)
        images[batch] = _draw_batch(rng, labels[batch], size, look)
    return images, labels


def lesion_labels(*, seed: int, site: str, split: str, count: int, num_classes: int) -> np.ndarray:
    """The labels, int64 (count,), of the images that `draw_lesions` draws, without drawing them."""
    return _start(seed, site, split, count, num_classes)[1]


def _start(seed: int, site: str, split: str, count: int, num_classes: int) -> tuple[np.random.Generator, np.ndarray]:
    """The generator of a split's random numbers, and the labels, which are drawn first."""
    if not 2 <= num_classes <= len(CLASSES):
        raise UserError(f"num_classes is {num_classes}; the lesion images have 2 to {len(CLASSES)} classes.")
    if count < 1:
        raise UserError(f"count is {count}; at least 1 lesion image must be drawn.")
    rng = np.random.default_rng(derive_seed(seed, "lesions", site, split))
    return rng, rng.permutation(np.arange(count, dtype=np.int64) % num_classes)


@dataclass(frozen=True)
class _Look:
    """What all images of a site share."""

    skin: np.ndarray  # (3,), RGB in [0, 1]
    balance: np.ndarray  # (3,), gain of each channel
    contrast: float
    gamma: float  # bend of the tone curve: v + gamma v (1 - v)
    vignette: float  # loss of light in the corners

    @classmethod
    def of_site(cls, site: str) -> "_Look":
        rng = np.random.default_rng(derive_seed(0, "lesion site", site))
        skin = mix(
            np.array([0.93, 0.76, 0.68], np.float32), np.array([0.66, 0.46, 0.36], np.float32), uniform(rng, 0, 1, (1,))
        )
        balance = uniform(rng, 0.88, 1.12, (3,))
        contrast, gamma, vignette = (
            float(uniform(rng, low, high, ())) for low, high in ((0.8, 1.2), (-0.35, 0.35), (0, 0.45))
        )
        return cls(skin, balance, contrast, gamma, vignette)


def _draw_batch(rng: np.random.Generator, labels: np.ndarray, size: int, look: _Look) -> np.ndarray:
    """uint8 (count, size, size, 3)."""
    count = len(labels)
    image = _skin(rng, count, size, look)
    x, y, level = _outline(rng, labels, size)
    _pigment(rng, labels, image, x, y, level)
    _add_hair(rng, image, size)
    return _photograph(rng, image, size, look)


def _strength(rng: np.random.Generator, labels: np.ndarray, cue: str) -> np.ndarray:
    """A random number for each image within its class's bounds of `cue`, a field of `Cues`, (count, 1, 1)."""
    low, high = np.array([getattr(cues, cue) for cues in _CUES.values()], np.float32)[labels].T
    return mix(low[:, None, None], high[:, None, None], uniform(rng, 0, 1, (len(labels), 1, 1)))


def _strengths(rng: np.random.Generator, labels: np.ndarray) -> dict[str, np.ndarray]:
    """How strong each pattern is in each image, (count,) in [0, 1); 0 where it is absent."""
    names = list(PATTERNS)
    chances = np.full((len(CLASSES), len(names)), _STRAY, np.float32)
    leaders = np.zeros((len(CLASSES), 6), np.int64)  # 6 holds one, two or three leading patterns equally often
    for row, cues in enumerate(_CUES.values()):
        chances[row, [names.index(name) for name in (*cues.leading, *cues.shared)]] = _TYPICAL
        leaders[row] = np.resize([names.index(name) for name in cues.leading], 6)
    present = uniform(rng, 0, 1, (len(labels), len(names))) < chances[labels]
    leader = leaders[labels, rng.integers(0, 6, len(labels))]
    present[np.arange(len(labels)), leader] |= uniform(rng, 0, 1, (len(labels),)) < _LEADS
    strength = np.where(present, uniform(rng, 0.7, 1, present.shape), np.float32(0))
    return dict(zip(names, strength.T, strict=True))


def _skin(rng: np.random.Generator, count: int, size: int, look: _Look) -> np.ndarray:
    """(count, 3, size, size): the site's skin tone with each patient's own, blotchy and fine-grained."""
    tone = look.skin[:, None, None] * uniform(rng, 0.88, 1.1, (count, 1, 1, 1))
    tone = tone + uniform(rng, -0.03, 0.03, (count, 3, 1, 1))
    relief = 0.03 * noise(rng, count, size, 4) + 0.025 * noise(rng, count, size, 16)
    return tone + relief[:, None]


def _outline(rng: np.random.Generator, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lesion's own coordinates x, y and its level: 0 at the centre, 1 on the border, (count, size, size) each."""
    count = len(labels)
    cos, sin = direction(rng, count)
    u, v = grid(size)
    u, v = u - uniform(rng, -0.15, 0.15, (count, 1, 1)), v - uniform(rng, -0.15, 0.15, (count, 1, 1))
    scale = 1 / uniform(rng, 0.55, 0.85, (count, 1, 1))
    x, y = (cos * u - sin * v) * scale, (sin * u + cos * v) * scale
    waves = 0.65 * noise(rng, count, size, 5) + 0.5 * noise(rng, count, size, 10)
    stretch = uniform(rng, 1, 1.5, (count, 1, 1))
    level = np.sqrt(x * x + y * y * stretch * stretch)
    asymmetry = _strength(rng, labels, "asymmetry")
    lobe = np.sqrt((x - 0.4 - asymmetry) ** 2 + (y - asymmetry * 0.7) ** 2) / (0.25 + asymmetry)
    level = np.minimum(level, lobe)
    return x, y, level + _strength(rng, labels, "irregularity") * 2 * waves


def _pigment(
    rng: np.random.Generator, labels: np.ndarray, image: np.ndarray, x: np.ndarray, y: np.ndarray, level: np.ndarray
) -> None:
    """Lays the lesion's colours over the skin ``image`` (count, 3, size, size), in place."""
    count, _, size, _ = image.shape
    body = step((1 - level) / _strength(rng, labels, "softness"))
    warmth = uniform(rng, 0, 1, (count, 1))
    colour = mix(np.array([0.36, 0.2, 0.13], np.float32), np.array([0.66, 0.36, 0.3], np.float32), warmth)
    colour = colour + uniform(rng, -0.05, 0.05, (count, 3))
    dark = colour * uniform(rng, 0.35, 0.6, (count, 1))
    patchy = noise(rng, count, size, 6)
    lay(image, colour, body * uniform(rng, 0.55, 0.9, (count, 1, 1)) * (0.85 + 0.15 * patchy))
    for name, strength in _strengths(rng, labels).items():
        has = np.flatnonzero(strength)
        if len(has):
            own = Lesion(x[has], y[has], level[has], body[has], dark[has])
            paint, amount = PATTERNS[name](rng, own)
            part = image[has]
            lay(part, paint, amount * strength[has, None, None])
            image[has] = part


def _add_hair(rng: np.random.Generator, image: np.ndarray, size: int) -> None:
    """Draws up to three dark, bent hairs over each image, in place."""
    u, v = grid(size)
    for _ in range(3):
        has = np.flatnonzero(uniform(rng, 0, 1, (len(image),)) < 0.2)
        one = (len(has), 1, 1)
        cos, sin = direction(rng, len(has))
        along, across = cos * u + sin * v, cos * v - sin * u
        bend, offset = uniform(rng, -0.4, 0.4, one), uniform(rng, -0.9, 0.9, one)
        hair = step(1 - np.abs(across - offset - bend * along * along) / uniform(rng, 0.02, 0.05, one))
        image[has] *= (1 - np.float32(0.7) * hair)[:, None]


def _photograph(rng: np.random.Generator, image: np.ndarray, size: int, look: _Look) -> np.ndarray:
    """Applies light, camera and noise: float32 (count, 3, size, size), overwritten, to uint8 (count, size, size, 3)."""
    count = len(image)
    u, v = grid(size)
    cos, sin = direction(rng, count)
    slope = uniform(rng, 0, 0.15, (count, 1, 1))
    light = 1 + slope * (cos * u + sin * v) - np.float32(look.vignette * 0.5) * (u * u + v * v)
    light *= uniform(rng, 0.85, 1.1, (count, 1, 1)) * np.float32(look.contrast)
    balance = look.balance[:, None, None] * uniform(rng, 0.96, 1.04, (count, 3, 1, 1))
    image *= light[:, None]
    image *= balance
    image += np.float32(0.5 - 0.5 * look.contrast)
    np.clip(image, 0, 1, out=image)
    image *= 1 + np.float32(look.gamma) * (1 - image)
    grain = rng.random(image.shape, dtype=np.float32)
    grain -= np.float32(0.5)
    grain *= uniform(rng, 0.03, 0.1, (count, 1, 1, 1))
    image += grain
    np.clip(image, 0, 1, out=image)
    image *= 255
    image += np.float32(0.5)
    return image.astype(np.uint8).transpose(0, 2, 3, 1)
