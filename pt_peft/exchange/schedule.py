"""Which tensors travel in which round. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from pt_peft.exchange import lora_pairs
from pt_peft.exchange.tensors import TensorSpec


@dataclass(frozen=True)
class Exchange:
    """What an experiment exchanges, known alike to the server, to every site and to its egress filter.

    Some methods train other tensors in each round. Those *rotating* tensors travel only when they were trained, and a site
    keeps the last aggregate of each; all others travel in every round, both ways unless they are *computed*.
    """

    specs: Mapping[str, TensorSpec]
    """Every tensor that may travel, by canonical key."""
    always: frozenset[str]
    """Keys that travel in every round."""
    rotating: tuple[frozenset[str], ...] = ()
    """For each round the other keys that train in it; empty if no tensor rotates."""
    computed: frozenset[str] = frozenset()
    """Of `always`, keys of the model that only the server changes: they travel to the sites alone."""
    control: frozenset[str] = frozenset()
    """Of `always`, keys that are no tensors of the model: SCAFFOLD's control variates."""

    def trained(self, round_number: int) -> dict[str, TensorSpec]:
        """What a site trains in a round, counted from 0."""
        return self._among(self._sent(round_number) - self.control)

    def sent(self, round_number: int) -> dict[str, TensorSpec]:
        """What a site sends after a round."""
        return self._among(self._sent(round_number))

    def payload(self, since: int, round_number: int) -> dict[str, TensorSpec]:
        """What a site that holds the aggregate of `since` finished rounds needs before round `round_number`.

        ``payload(0, n)`` is also all that n rounds have changed.
        """
        return self._among(self.always.union(*self.rotating[since:round_number]))

    def changed(self, rounds: int) -> dict[str, TensorSpec]:
        """The tensors of the model that so many rounds have changed."""
        return self._among(self.always.union(*self.rotating[:rounds]) - self.control)

    def at_rank(self, rank: int | None) -> "Exchange":
        """As a site exchanges that trains LoRA at `rank`; None for the rank of the experiment."""
        if rank is None:
            return self
        return replace(self, specs={key: lora_pairs.spec_at_rank(key, spec, rank) for key, spec in self.specs.items()})

    def _sent(self, round_number: int) -> frozenset[str]:
        return self.always.union(*self.rotating[round_number : round_number + 1]) - self.computed

    def _among(self, keys: frozenset[str]) -> dict[str, TensorSpec]:
        return {key: spec for key, spec in self.specs.items() if key in keys}

    def to_json(self) -> dict:
        """JSON-serialisable fields that `from_json` takes back. Sets are lists of positions in ``tensors``."""
        position = {key: index for index, key in enumerate(self.specs)}
        return {
            "tensors": {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in self.specs.items()},
            "rotating": [sorted(position[key] for key in keys) for keys in self.rotating],
            **{name: sorted(position[key] for key in getattr(self, name)) for name in _SETS},
        }

    @classmethod
    def from_json(cls, content: dict) -> "Exchange":
        """Raises KeyError, TypeError, IndexError or AttributeError for anything but what `to_json` returns."""
        specs = {key: TensorSpec(tuple(spec["shape"]), str(spec["dtype"])) for key, spec in content["tensors"].items()}
        keys = list(specs)
        return cls(
            specs,
            rotating=tuple(frozenset(keys[index] for index in indices) for indices in content["rotating"]),
            **{name: frozenset(keys[index] for index in content[name]) for name in _SETS},
        )


_SETS = tuple(field.name for field in fields(Exchange) if field.name not in ("specs", "rotating"))
