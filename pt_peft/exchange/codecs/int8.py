r"""Eight bits a value, and a scale for each channel.

    s_c = max_i |x_ci| / 127,    q_ci = floor(x_ci / s_c + u),    x'_ci = s_c q_ci

u is drawn from [0, 1), so that the mean of x' is x (QSGD, Alistarh et al. 2017, arXiv:1610.02132). Rounding to nearest
takes u = 1/2.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from pt_peft.exchange.codecs.base import Codec
from pt_peft.exchange.tensors import Array, TensorError, Tensors, TensorSpec

STEPS = 127
"""Greatest step. The range is symmetric: -128 is not used."""
_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.nextafter(np.float32(np.finfo(np.float32).max / STEPS), np.float32(0)))
"""Range of scales: normal numbers whose 127-fold is finite."""


class Int8(Codec):
    """A byte a value and four bytes a channel.

    Channels run along the shortest axis, so that LoRA's factors have one for each of their components. A tensor of one
    axis or none is one channel. The error is at most the scale, and at most half of it when rounding to nearest.
    """

    name: Literal["int8"]
    error_feedback: bool = True
    """Whether a site keeps what rounding lost and adds it to its next change; the server needs no error feedback."""

    @property
    def remembers(self) -> bool:
        """As ``error_feedback`` says."""
        return self.error_feedback

    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        """The steps q, a byte a value, and the scale of each channel."""
        return {"": TensorSpec(spec.shape, "int8"), "/scale": TensorSpec((_channels(spec.shape),), "float32")}

    def write(self, key: str, value: Array, random: np.random.Generator | None) -> Tensors:
        """Rounds at random with `random`, else to nearest."""
        value = value.astype(np.float64)
        peak = np.abs(value).max(axis=_others(value.shape), initial=0).reshape(_channels(value.shape))
        scale = np.where(peak > 0, np.clip(peak / STEPS, _SMALLEST, _LARGEST), 0).astype(np.float32)
        steps = value / _along(np.where(scale > 0, scale, 1).astype(np.float64), value.shape)
        rounded = np.rint(steps) if random is None else np.floor(steps + random.random(steps.shape))
        # The scale itself is rounded, so that the largest value may be a little more than 127 steps.
        # As an array: numpy makes plain numbers of tensors without axes.
        return {"": np.asarray(np.clip(rounded, -STEPS, STEPS), np.int8), "/scale": scale}

    def read(self, key: str, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        """Multiplies steps by scales. Raises TensorError for steps of -128 and for negative scales."""
        steps, scale = parts[""], parts["/scale"]
        if (steps < -STEPS).any():
            raise TensorError(
                f"tensor '{key}' has {int((steps < -STEPS).sum())} value(s) of -128, which is not used", key
            )
        if (scale < 0).any():
            raise TensorError(f"tensor '{key}/scale' has {int((scale < 0).sum())} negative value(s)", key)
        with np.errstate(over="ignore"):
            return np.asarray(steps.astype(np.float32) * _along(scale, spec.shape))


def _axis(shape: tuple[int, ...]) -> int | None:
    """The axis of the channels: the shortest, the first of several; None if there is one channel."""
    return shape.index(min(shape)) if len(shape) > 1 else None


def _channels(shape: tuple[int, ...]) -> int:
    axis = _axis(shape)
    return 1 if axis is None else shape[axis]


def _others(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(shape)) if axis != _axis(shape))


def _along(scale: Array, shape: tuple[int, ...]) -> Array:
    """Reshapes `scale`, one value a channel, so that it multiplies with tensors of `shape`."""
    return scale.reshape([len(scale) if axis == _axis(shape) else 1 for axis in range(len(shape))])
