"""What all ways to write tensors share. Imports no torch."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import numpy as np

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import TensorError, Tensors, TensorSpec, check_tensors
from pt_peft.schema import Strict

Draw = Callable[[str], np.random.Generator]
"""Gives the random numbers for the tensor of a key."""


class Codec(Strict):
    """The settings of one way to write float32 tensors; its ``name`` tells it from others.

    A tensor travels as one or more arrays, its *parts*, under its own key with the part's name behind. How many they are,
    their shapes and their dtypes follow from the tensor's shape alone, so that both ends know them.
    """

    @property
    def remembers(self) -> bool:
        """Whether a site keeps what was lost in writing, and adds it to what it writes next."""
        return False

    def specs(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """What travels for tensors of `specs`."""
        return {key + name: part for key, spec in specs.items() for name, part in self.parts(spec).items()}

    def encode(self, tensors: Mapping[str, np.ndarray], draw: Draw | None = None) -> Tensors:
        """What travels for `tensors`, float32.

        Args:
            draw: for codecs that can round at random; None rounds to nearest.

        Raises:
            TensorError: naming a tensor that is not finite.
            UserError: naming a tensor with values that this codec cannot write.
        """
        encoded = {}
        for key, value in tensors.items():
            if not np.isfinite(value).all():
                raise TensorError(f"tensor '{key}' has {int((~np.isfinite(value)).sum())} value(s) that are not finite")
            encoded |= {key + name: part for name, part in self.write(key, value, draw and draw(key)).items()}
        return encoded

    def decode(self, payload: object, specs: Mapping[str, TensorSpec]) -> Tensors:
        """The tensors of `specs` that `payload` stands for.

        Raises:
            TensorError: naming a tensor that is missing, not allowed, of another shape or dtype than `specs` asks for, not
                finite, or written as `encode` never writes it.
        """
        encoded = check_tensors(payload, self.specs(specs))
        decoded = {
            key: self.read(key, {name: encoded[key + name] for name in self.parts(spec)}, spec)
            for key, spec in specs.items()
        }
        return check_tensors(decoded, specs)

    @abstractmethod
    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        """What a tensor of `spec` is written as, by the names of its parts: empty, or beginning with a slash."""

    @abstractmethod
    def write(self, key: str, value: np.ndarray, random: np.random.Generator | None) -> dict[str, np.ndarray]:
        """The parts of a finite tensor. Raises UserError for values that cannot be written."""

    @abstractmethod
    def read(self, key: str, parts: Mapping[str, np.ndarray], spec: TensorSpec) -> np.ndarray:
        """The tensor of `parts`, whose shapes and dtypes are right; not finite where they overflow. Raises TensorError."""


def too_large(key: str, count: int, codec: str, largest: float) -> UserError:
    """For `count` values of a tensor that `codec` cannot hold."""
    return UserError(
        f"tensor '{key}' has {count} value(s) beyond {largest:g}, the largest of payload '{codec}'; 'float32' would be right."
    )
