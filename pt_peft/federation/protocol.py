"""What every server of a federation does, whether or not it can read what the sites send. Imports no torch."""

from typing import Protocol, TypeVar

from pydantic import JsonValue

from pt_peft.exchange.server_optimizers.base import Optimizer
from pt_peft.exchange.tensors import Tensors


class Round(Protocol):
    """A round that takes the payloads of sites, in any order."""

    @property
    def shares(self) -> dict[str, float]:
        """Each site's share of the aggregate once the round is finished; empty where sites have none."""
        ...

    def add(self, site: str, payload: object, num_samples: int) -> None:
        """Checks the payload of a site and adds it.

        Raises:
            TensorError: if it is not what the site has to send. Nothing is then added.
        """
        ...


RoundT = TypeVar("RoundT", bound=Round)


class Server(Protocol[RoundT]):
    """Holds what the sites start from, from round to round."""

    tensors: Tensors
    """The aggregate of the last round as the server holds it: tensors, or ciphertexts."""
    optimizer: Optimizer
    """The server optimiser, whose state a job that continues another takes over."""

    def rank(self, site: str) -> int | None:
        """The rank at which the site trains LoRA; None for the experiment's."""
        ...

    def payload(self, site: str, since: int, round_number: int) -> Tensors:
        """Makes the payload down to a site.

        Args:
            site: its name.
            since: number of finished rounds whose aggregate the site holds already.
            round_number: the round that the site will train in, from 0.

        Raises:
            UserError: if the codec ``payload.down`` cannot write a value.
        """
        ...

    def start_round(self, round_number: int) -> RoundT:
        """Opens a round, counted from 0, that starts from `tensors`."""
        ...

    def finish_round(self, finished: RoundT, sites: int) -> dict[str, float]:
        """Aggregates the payloads of a round into new `tensors`, which the next round starts from.

        Args:
            finished: the round.
            sites: number of all sites, with those that gave no result.

        Returns:
            Measurements of the aggregation, by name.

        Raises:
            ValueError: if the round has no result.
        """
        ...

    def result(self, tensors: Tensors, finished_rounds: int) -> Tensors:
        """Selects from `tensors` those that the finished rounds have changed: the content of an adapter file."""
        ...

    def header(self) -> dict[str, JsonValue]:
        """Fields that the adapter file's header has beside the usual."""
        ...

    def state(self, finished_rounds: int) -> Tensors:
        """Selects the tensors that another server needs to go on after the finished rounds."""
        ...

    def take_over(self, state: Tensors, finished_rounds: int) -> None:
        """Goes on from the `state` of another server.

        Raises:
            TensorError: if it is not the state of a server of this experiment.
        """
        ...
