"""The server's part of a federation whose updates it cannot read, in the place of `pt_peft.federation.server.FederationServer`."""

from pt_peft.encryption.ciphertexts import Sum
from pt_peft.encryption.contexts import Context
from pt_peft.exchange.ciphertext_layout import Layout
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.encryption import weight_of
from pt_peft.experiment.experiment import Experiment
from pt_peft.federation.server import privacy_note


class EncryptedServer:
    """Holds the encrypted sum of the last round, and the sum of weights that goes with it."""

    def __init__(self, experiment: Experiment, exchange: Exchange, context: Context):
        """Args:
        context: without a secret key.
        """
        self.tensors: Tensors = {}
        """Empty before the first round: every site knows by itself where that starts."""
        self.optimizer = experiment.server_optimizer.start()
        self._layout = Layout(exchange.up(0))
        self._experiment = experiment
        self._weighting = experiment.aggregation.weighting
        self._context = context

    def rank(self, site: str) -> None:
        """None: all sites train at the experiment's."""
        return None

    def payload(self, site: str, since: int, round_number: int) -> Tensors:
        """What to send to a site before a round: all there is."""
        return self.tensors

    def result(self, tensors: Tensors, finished_rounds: int) -> Tensors:
        """What of `tensors` so many rounds have made."""
        return tensors

    def state(self, finished_rounds: int) -> Tensors:
        """What a server needs that goes on after so many rounds."""
        return self.tensors

    def take_over(self, state: Tensors, finished_rounds: int) -> None:
        """Goes on from the `state` of a server after so many rounds. Raises TensorError if it is no sum of ciphertexts."""
        if finished_rounds:
            self._layout.check_sum(state)
        self.tensors = state

    def header(self) -> dict:
        """What a file says that `result` is kept in: how its tensors lie in the ciphertexts."""
        shapes = {key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in self._layout.specs.items()}
        return {"encrypted": {"scheme": "ckks", "tensors": shapes}}

    def start_round(self, round_number: int) -> "EncryptedRound":
        """A round, counted from 0, that waits for results."""
        return EncryptedRound(Sum(self._context, self._layout), self._weighting, round_number)

    def finish_round(self, finished: "EncryptedRound", sites: int) -> dict[str, float]:
        """Makes `tensors` those that the next round starts from; all there is to say of them is what their noise costs the sites.
        Raises ValueError if the round has no result.
        """
        self.tensors = finished.sum.result()
        return privacy_note(self._experiment, finished.number)


class EncryptedRound:
    """Takes the results of one round."""

    def __init__(self, summed: Sum, weighting: str, number: int):
        self.sum = summed
        self.number = number
        self._weighting = weighting

    def add(self, site: str, payload: object, num_samples: int) -> None:
        """Takes the result of a site. Raises TensorError, and adds nothing, if it is not ciphertexts as the site has to send."""
        self.sum.add(payload, weight_of(self._weighting, num_samples))
