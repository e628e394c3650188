"""Which tensors travel in which round. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from pt_peft.tensors import TensorSpec


@dataclass(frozen=True)
class Exchange:
    """What an experiment exchanges, known alike to the server, to every site and to its egress filter.

    Some methods train other tensors in each round. Those *rotating* tensors travel only when they were trained, and a site
    keeps the last aggregate of each; all others travel in every round, both ways.
    """

    specs: Mapping[str, TensorSpec]
    """Every tensor that may travel, by canonical key."""
    always: frozenset[str]
    """Keys that train and travel in every round."""
    rotating: tuple[frozenset[str], ...] = ()
    """For each round the other keys that train in it; empty if no tensor rotates."""

    def trained(self, round_number: int) -> dict[str, TensorSpec]:
        """What a site trains and sends in a round, counted from 0."""
        return self._among(self.always.union(*self.rotating[round_number : round_number + 1]))

    def payload(self, since: int, round_number: int) -> dict[str, TensorSpec]:
        """What a site that holds the aggregate of `since` finished rounds needs before round `round_number`.

        ``payload(0, n)`` is also all that n rounds have changed.
        """
        return self._among(self.always.union(*self.rotating[since:round_number]))

    def _among(self, keys: frozenset[str]) -> dict[str, TensorSpec]:
        return {key: spec for key, spec in self.specs.items() if key in keys}

    def to_json(self) -> dict:
        """JSON-serialisable fields that `from_json` takes back. Rounds are lists of positions in ``tensors``."""
        position = {key: index for index, key in enumerate(self.specs)}
        return {
            "tensors": {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in self.specs.items()},
            "always": sorted(position[key] for key in self.always),
            "rotating": [sorted(position[key] for key in keys) for keys in self.rotating],
        }

    @classmethod
    def from_json(cls, fields: dict) -> "Exchange":
        """Raises KeyError, TypeError, IndexError or AttributeError for anything but what `to_json` returns."""
        specs = {key: TensorSpec(tuple(spec["shape"]), str(spec["dtype"])) for key, spec in fields["tensors"].items()}
        keys = list(specs)
        return cls(
            specs,
            frozenset(keys[index] for index in fields["always"]),
            tuple(frozenset(keys[index] for index in indices) for indices in fields["rotating"]),
        )
