"""What all codecs share. Imports no torch."""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import numpy as np

from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Array, TensorError, Tensors, TensorSpec, check_tensors
from pt_peft.schema import Strict

Draw = Callable[[str], np.random.Generator]
"""Gives the random generator for the tensor of a key."""


class Codec(Strict):
    """The settings of one way to write float32 tensors; its ``name`` selects it.

    A tensor travels as one or more arrays, its *parts*, each under the tensor's key followed by the part's name. The
    number of parts, their shapes and their dtypes follow from the tensor's shape alone, so that both ends know them.
    """

    @property
    def remembers(self) -> bool:
        """Whether a site keeps what writing lost, and adds it to what it writes next."""
        return False

    def specs(self, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        """Specs of the payload that carries tensors of `specs`."""
        return {key + name: part for key, spec in specs.items() for name, part in self.parts(spec).items()}

    def encode(self, tensors: Mapping[str, Array], draw: Draw | None = None) -> Tensors:
        """Writes float32 `tensors` as a payload.

        Args:
            tensors: by key.
            draw: random numbers for codecs that can round at random; None rounds to nearest.

        Raises:
            TensorError: naming a tensor that is not finite.
            UserError: naming a tensor with values that this codec cannot write.
        """
        encoded: Tensors = {}
        for key, value in tensors.items():
            if not np.isfinite(value).all():
                raise TensorError(
                    f"tensor '{key}' has {int((~np.isfinite(value)).sum())} value(s) that are not finite", key
                )
            encoded |= {key + name: part for name, part in self.write(key, value, draw and draw(key)).items()}
        return encoded

    def decode(self, payload: object, specs: Mapping[str, TensorSpec]) -> Tensors:
        """Reads the tensors of `specs` from a payload.

        Raises:
            TensorError: naming a tensor that is missing, not allowed, not finite, of another shape or dtype than
                `specs` asks for, or written as `encode` never writes it.
        """
        encoded = check_tensors(payload, self.specs(specs))
        decoded = {
            key: self.read(key, {name: encoded[key + name] for name in self.parts(spec)}, spec)
            for key, spec in specs.items()
        }
        return check_tensors(decoded, specs)

    @abstractmethod
    def parts(self, spec: TensorSpec) -> dict[str, TensorSpec]:
        """Specs of the parts of a tensor of `spec`, by name: the empty name, or one that begins with a slash."""

    @abstractmethod
    def write(self, key: str, value: Array, random: np.random.Generator | None) -> Tensors:
        """Writes a finite tensor as parts, by name. Raises UserError for values that the codec cannot write."""

    @abstractmethod
    def read(self, key: str, parts: Mapping[str, Array], spec: TensorSpec) -> Array:
        """Reads a tensor from `parts` of the right shapes and dtypes; it is not finite where they overflow.

        Raises:
            TensorError: if the parts hold what `write` never writes.
        """


def too_large(key: str, count: int, codec: str, largest: float) -> UserError:
    """The error for `count` values of a tensor that `codec` cannot hold."""
    return UserError(
        f"tensor '{key}' has {count} value(s) beyond {largest:g}, the largest of payload '{codec}'; "
        "'float32' would be right."
    )
