"""The server's end of a round whose payloads it cannot read. Imports no torch."""

from pydantic import JsonValue

from pt_peft.encryption.ciphertexts import Sum
from pt_peft.encryption.contexts import Context
from pt_peft.encryption.header import EncryptedHeader, EncryptedTensor
from pt_peft.exchange.aggregation.base import Rule
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import parted
from pt_peft.federation.server import privacy_note


class EncryptedServer:
    """A `Server` that adds up ciphertexts: it holds the sum of the last round, and the sum of the sites' weights."""

    def __init__(self, experiment: Experiment, exchange: Exchange, context: Context):
        """Starts before the first round.

        Args:
            experiment: that the server runs.
            exchange: the experiment's.
            context: the server's, without a secret key.
        """
        self.tensors: Tensors = {}
        """Empty before the first round, whose start every site computes by itself."""
        self.optimizer = experiment.server_optimizer.start()
        self._layout = Layout(exchange.up(0))
        self._head = exchange.head
        self._experiment = experiment
        self._context = context

    def rank(self, site: str) -> None:
        """None: all sites train LoRA at the experiment's rank."""
        return None

    def payload(self, site: str, since: int, round_number: int) -> Tensors:
        """Returns the sum as it is, for every site alike, with the statistics that the classifier follows from."""
        return self.tensors

    def result(self, tensors: Tensors, finished_rounds: int) -> Tensors:
        """Returns `tensors`: a sum of ciphertexts cannot be divided up."""
        return tensors

    def state(self, finished_rounds: int) -> Tensors:
        """Returns the sum of the last round."""
        return self.tensors

    def take_over(self, state: Tensors, finished_rounds: int) -> None:
        """Goes on from the `state` of another server. Raises TensorError if it is no sum of ciphertexts."""
        if finished_rounds:
            self._layout.check_sum(parted(state)[0])
        self.tensors = state

    def header(self) -> dict[str, JsonValue]:
        """Says how the tensors lie in the ciphertexts, which `decrypt` needs."""
        tensors = {key: EncryptedTensor(shape=spec.shape, dtype="float32") for key, spec in self._layout.specs.items()}
        return {"encrypted": EncryptedHeader(tensors=tensors, head=tuple(sorted(self._head))).model_dump(mode="json")}

    def start_round(self, round_number: int) -> "EncryptedRound":
        """Opens a round, counted from 0."""
        return EncryptedRound(Sum(self._context, self._layout), self._experiment.aggregation, round_number)

    def finish_round(self, finished: "EncryptedRound", sites: int) -> dict[str, float]:
        """Makes `tensors` the sum of the round, which the sites decrypt and divide.

        Returns:
            ``client_epsilon``, if the sites' noise makes a promise to whole sites.

        Raises:
            ValueError: if the round has no result.
        """
        self.tensors = finished.sum.result()
        return privacy_note(self._experiment, finished.number)


class EncryptedRound:
    """A `Round` that adds the ciphertexts of the sites up."""

    def __init__(self, summed: Sum, rule: Rule, number: int):
        self.sum = summed
        self.number = number
        """Number of the round, from 0."""
        self._rule = rule
        self._weights: dict[str, int] = {}

    @property
    def shares(self) -> dict[str, float]:
        """Each site's share of the sum."""
        total = sum(self._weights.values())
        return {site: weight / total for site, weight in self._weights.items()}

    def add(self, site: str, payload: object, num_samples: int) -> None:
        """Adds the ciphertexts of a site. Raises TensorError, and adds nothing, if they are not what it has to send."""
        weight = self._rule.weight(num_samples)
        self.sum.add(payload, weight)
        self._weights[site] = weight
