"""Which tensors travel in which round. Imports no torch.

Two payloads travel in a round: *down*, from the server to a site, and *up*, from the site to the server.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from pt_peft.exchange import lora_pairs
from pt_peft.exchange.tensors import TensorSpec


class TensorJson(TypedDict):
    """A `TensorSpec` as JSON."""

    shape: list[int]
    dtype: str


class ExchangeJson(TypedDict):
    """An `Exchange` as JSON. Sets of keys are lists of positions in ``tensors``."""

    tensors: dict[str, TensorJson]
    rotating: list[list[int]]
    always: list[int]
    computed: list[int]
    control: list[int]
    head: list[int]


@dataclass(frozen=True)
class Exchange:
    """What an experiment exchanges. Server, sites and egress filters compute the same from the experiment alone.

    Some methods train other tensors in each round. Those *rotating* tensors travel only when they were trained, and a
    site keeps the last aggregate of each. All other tensors travel in every round, both ways unless they are
    *computed*.
    """

    specs: Mapping[str, TensorSpec]
    """Every tensor that may travel, by canonical key."""
    always: frozenset[str]
    """Keys that travel in every round."""
    rotating: tuple[frozenset[str], ...] = ()
    """For each round the other keys that train in it; empty if no tensor rotates."""
    computed: frozenset[str] = frozenset()
    """Those of `always` that only the server changes: they travel down alone."""
    control: frozenset[str] = frozenset()
    """Those of `always` that are no tensors of the model: SCAFFOLD's control variates."""
    head: frozenset[str] = frozenset()
    """Those of `always` that are the classifier's: its weight (K,d) and its bias (K,). Empty if it is not exchanged."""

    @property
    def features(self) -> int:
        """Width d of the features that enter the classifier. Raises ValueError if it is not exchanged."""
        (width,) = (spec.shape[1] for key, spec in self.specs.items() if key in self.head and len(spec.shape) > 1)
        return width

    def trained(self, round_number: int) -> dict[str, TensorSpec]:
        """Specs of the exchanged tensors that get gradients in a round. Rounds count from 0."""
        return self._specs_of(self._keys_up(round_number) - self.control)

    def up(self, round_number: int) -> dict[str, TensorSpec]:
        """Specs of the tensors that a site sends after it has trained in a round."""
        return self._specs_of(self._keys_up(round_number))

    def down(self, since: int, round_number: int) -> dict[str, TensorSpec]:
        """Specs of the tensors that the server sends to a site before a round.

        ``down(0, n)`` is also everything that n rounds have changed.

        Args:
            since: number of finished rounds whose aggregate the site holds already.
            round_number: the round that the site will train in, from 0.
        """
        return self._specs_of(self.always.union(*self.rotating[since:round_number]))

    def changed(self, rounds: int) -> dict[str, TensorSpec]:
        """Specs of the model's tensors that the first `rounds` rounds have changed."""
        return self._specs_of(self.always.union(*self.rotating[:rounds]) - self.control)

    def at_rank(self, rank: int | None) -> "Exchange":
        """The exchange of a site that trains LoRA at `rank`; None for the rank of the experiment."""
        if rank is None:
            return self
        return replace(self, specs={key: lora_pairs.spec_at_rank(key, spec, rank) for key, spec in self.specs.items()})

    def _keys_up(self, round_number: int) -> frozenset[str]:
        return self.always.union(*self.rotating[round_number : round_number + 1]) - self.computed

    def _specs_of(self, keys: Collection[str]) -> dict[str, TensorSpec]:
        return {key: spec for key, spec in self.specs.items() if key in keys}

    def to_json(self) -> ExchangeJson:
        """JSON-serialisable fields that `from_json` takes back."""
        position = {key: index for index, key in enumerate(self.specs)}

        def positions(keys: Collection[str]) -> list[int]:
            return sorted(position[key] for key in keys)

        return {
            "tensors": {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in self.specs.items()},
            "rotating": [positions(keys) for keys in self.rotating],
            "always": positions(self.always),
            "computed": positions(self.computed),
            "control": positions(self.control),
            "head": positions(self.head),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Exchange":
        """Reads what `to_json` returns. Raises KeyError, TypeError, IndexError or AttributeError for anything else."""
        specs = {key: TensorSpec(tuple(spec["shape"]), str(spec["dtype"])) for key, spec in content["tensors"].items()}
        keys = list(specs)

        def keys_at(positions: list[int]) -> frozenset[str]:
            return frozenset(keys[position] for position in positions)

        return cls(
            specs,
            always=keys_at(content["always"]),
            rotating=tuple(keys_at(positions) for positions in content["rotating"]),
            computed=keys_at(content["computed"]),
            control=keys_at(content["control"]),
            head=keys_at(content["head"]),
        )
