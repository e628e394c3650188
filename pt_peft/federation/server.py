"""The server's end of a round, independent of the transport. Imports no torch.

`FederationServer.payload` encodes the server's tensors for one site. `FederationRound.add` decodes and checks what the
site sends back and hands it to the aggregation rule. `FederationServer.finish_round` gives the aggregate to the server
optimiser, whose result the next round starts from. `pt_peft.federation.local_round` is the site's end.
"""

import numpy as np
from pydantic import JsonValue

from pt_peft.exchange import lora_pairs
from pt_peft.exchange.aggregation.base import Aggregator, SiteResult
from pt_peft.exchange.aggregation.class_weighted_mean import ClassWeightedMean
from pt_peft.exchange.aggregation.lora_deviation import LoraDeviation
from pt_peft.exchange.aggregation.mean import Mean
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import Array, TensorError, Tensors, TensorSpec, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.statistics import weighs_by_class
from pt_peft.federation.control_variates import ControlMean, RoundChanges
from pt_peft.privacy.draws import draws_for
from pt_peft.privacy.plan import client_epsilon
from pt_peft.privacy.update_noise import NoisyMean
from pt_peft.statistics.moments import class_weights

_COUNTS = "class counts/"
"""In a server's state, the prefix of the key of a site's training images of each class."""
LARGEST = 1e6
"""Greatest magnitude of a value that a site may send. No sum or product of such values overflows: one site cannot make
the aggregate infinite."""


class FederationServer:
    """A `Server` that reads what the sites send, and holds the exchanged tensors in float32."""

    def __init__(self, experiment: Experiment, exchange: Exchange, tensors: Tensors):
        """Starts before the first round.

        Args:
            experiment: that the server runs.
            exchange: the experiment's.
            tensors: all exchanged tensors before the first round, by canonical key.
        """
        self.tensors = tensors
        self.optimizer = experiment.server_optimizer.start()
        self.class_counts: dict[str, Array] = {}
        """Training images of each class by site, float64 (K,), from the stage ``counts`` on if it `weighs_by_class`."""
        self._experiment = experiment
        self._exchange = exchange
        self._control = ControlMean()

    @property
    def federation_counts(self) -> Array:
        """Training images of each class at all sites that have sent theirs, float64 (K,)."""
        return np.sum([*self.class_counts.values()], axis=0)

    def rank(self, site: str) -> int | None:
        """The rank at which the site trains LoRA; None for the experiment's."""
        return self._experiment.federation.lora_ranks.get(site)

    def control_weight(self, site: str, num_samples: int) -> int:
        """The weight of the site's control variate, whose result of a round reports `num_samples` training images."""
        return self._control.weight(site, self._experiment.aggregation.weight(num_samples))

    def exchange(self, site: str) -> Exchange:
        """What the site exchanges, at its own rank."""
        return self._exchange.at_rank(self.rank(site))

    def payload(self, site: str, since: int, round_number: int) -> Tensors:
        """Encodes what has changed since the `since` finished rounds whose aggregate the site holds.

        Raises:
            UserError: if the codec ``payload.down`` cannot write a value.
        """
        tensors = {key: self.tensors[key] for key in self._exchange.down(since, round_number)}
        return self._experiment.payload.down.encode(lora_pairs.sliced(tensors, self.rank(site)))

    def result(self, tensors: Tensors, finished_rounds: int) -> Tensors:
        """Selects from `tensors` those that the finished rounds have changed; others are the backbone's."""
        return {key: tensors[key] for key in self._exchange.changed(finished_rounds)}

    def state(self, finished_rounds: int) -> Tensors:
        """Selects the tensors that another server needs to go on after the finished rounds."""
        state = {key: self.tensors[key] for key in self._exchange.down(0, finished_rounds)}
        state |= {_COUNTS + site: counts for site, counts in self.class_counts.items()}
        return {**state, **self._control.state()} if self._exchange.control else state

    def take_over(self, state: Tensors, finished_rounds: int) -> None:
        """Goes on from the `state` of another server. Raises TensorError if it is not a state of this experiment."""
        known = TensorSpec((len(self._experiment.data.classes),), "float64")
        counted = {key: state[key] for key in state if key.startswith(_COUNTS)}
        counts = check_tensors(counted, dict.fromkeys(counted, known))
        self.class_counts = {key.removeprefix(_COUNTS): value for key, value in counts.items()}
        state = {key: value for key, value in state.items() if key not in counted}
        if self._exchange.control:
            self._control.take_over({key: value for key, value in state.items() if key not in self._exchange.specs})
            state = {key: value for key, value in state.items() if key in self._exchange.specs}
        self.tensors = {**self.tensors, **check_tensors(state, self._exchange.down(0, finished_rounds))}

    def header(self) -> dict[str, JsonValue]:
        """No fields: an adapter file says what its tensors are."""
        return {}

    def start_round(self, round_number: int) -> "FederationRound":
        """Opens a round, counted from 0."""
        return FederationRound(self, self._experiment, self._exchange, round_number)

    def finish_round(self, finished: "FederationRound", sites: int) -> dict[str, float]:
        """Aggregates a round, and makes `tensors` what the next round starts from.

        Args:
            finished: the round.
            sites: number of all sites, with those that gave no result.

        Returns:
            ``lora_deviation``, see `LoraDeviation.value`, if any LoRA factors are exchanged; with ``privacy.client``
            instead ``client_epsilon``, see `pt_peft.privacy.plan.client_epsilon`.

        Raises:
            ValueError: if the round has no result.
        """
        remaining = self._experiment.federation.rounds - finished.number - 1
        step = self.optimizer.step(self.tensors, finished.aggregator.result(), remaining)
        if self._exchange.control:
            step |= self._control.step(self.tensors, finished.control, sites)
        self.tensors = {**self.tensors, **{key: value.astype(self.tensors[key].dtype) for key, value in step.items()}}
        if self._experiment.privacy.client:  # LoRA's deviation would tell of the updates without noise
            return privacy_note(self._experiment, finished.number)
        deviation = finished.deviation.value()
        return {} if deviation is None else {"lora_deviation": deviation}


def privacy_note(experiment: Experiment, round_number: int) -> dict[str, float]:
    """The epsilon that all aggregates up to a round have cost a site; empty if the experiment promises sites none."""
    spent = client_epsilon(experiment, round_number + 1)
    return {} if spent is None else {"client_epsilon": spent}


class FederationRound:
    """A `Round` that decodes and checks the payloads of the sites."""

    def __init__(self, server: FederationServer, experiment: Experiment, exchange: Exchange, number: int):
        self.aggregator = _aggregator(experiment, exchange, server, number)
        self.deviation = LoraDeviation()
        self.control = RoundChanges()
        self._server = server
        self._payload = experiment.payload
        self._exchange = exchange
        self._weighs_by_class = weighs_by_class(experiment)
        self.number = number
        """Number of the round, from 0."""

    @property
    def shares(self) -> dict[str, float]:
        """Each site's share of the aggregate once the round is finished; empty where sites have none."""
        return self.aggregator.shares

    def add(self, site: str, payload: object, num_samples: int) -> None:
        """Decodes the payload of a site, checks it, and hands it to the aggregation rule.

        Raises:
            TensorError: if it is not what the site has to send, or has values larger than `LARGEST`. Nothing is then
                added.
        """
        if self._weighs_by_class and site not in self._server.class_counts:
            raise TensorError("the site has not sent how many training images of each class it has")
        exchange = self._server.exchange(site)
        tensors = self._payload.up.decode(payload, exchange.up(self.number))
        if self._payload.changes:
            tensors |= self._changed(site, {key: tensors[key] for key in exchange.trained(self.number)})
        for key, value in tensors.items():
            if (peak := float(np.abs(value).max(initial=0))) > LARGEST:
                raise TensorError(
                    f"tensor '{key}' has values up to {peak:.3g}; at most {LARGEST:g} would be right", key
                )
        tensors = lora_pairs.padded(tensors, self._exchange.specs)
        control = {key: tensors.pop(key) for key in self._exchange.control}
        result = SiteResult(site, tensors, num_samples)
        self.aggregator.add(result)
        self.deviation.add(result)
        if control:
            self.control.add(site, control, self._server.control_weight(site, num_samples))

    def _changed(self, site: str, changes: Tensors) -> Tensors:
        """Adds a site's changes to the server's own tensors, at the site's rank."""
        before = lora_pairs.sliced({key: self._server.tensors[key] for key in changes}, self._server.rank(site))
        with np.errstate(over="ignore"):
            after = {key: np.asarray(before[key] + change) for key, change in changes.items()}
        return check_tensors(after, self._server.exchange(site).trained(self.number))


def _aggregator(experiment: Experiment, exchange: Exchange, server: FederationServer, number: int) -> Aggregator:
    privacy, rule = experiment.privacy, experiment.aggregation
    if privacy.client and privacy.client.where == "server":
        return NoisyMean(server.tensors, privacy.client, draws_for(privacy, experiment.seed, "server's noise", number))
    if weighs_by_class(experiment):
        weights = np.ones(len(experiment.data.classes))
        if experiment.training.imbalance == "federation_weights":
            weights = class_weights(server.federation_counts)
        head = exchange.head if isinstance(rule, Mean) and rule.weighting == "class_samples" else ()
        return ClassWeightedMean(server.tensors, server.class_counts, weights, head)
    return rule.start(server.tensors)
