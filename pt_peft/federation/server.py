"""The server's part of a federation, whatever carries its messages. Imports no torch."""

import numpy as np

from pt_peft.exchange import lora_pairs
from pt_peft.exchange.aggregation.base import Aggregator, SiteResult
from pt_peft.exchange.aggregation.lora_deviation import LoraDeviation
from pt_peft.exchange.aggregation.mean import RunningMean
from pt_peft.exchange.schedule import Exchange
from pt_peft.exchange.tensors import TensorError, Tensors, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.privacy.draws import draws_for
from pt_peft.privacy.plan import client_epsilon
from pt_peft.privacy.update_noise import NoisyMean

LARGEST = 1e6
"""Magnitude of a value that a site may send. No sum or product of such overflows: one site cannot make the aggregate infinite."""


class FederationServer:
    """Holds the exchanged tensors from round to round."""

    def __init__(self, experiment: Experiment, exchange: Exchange, tensors: Tensors):
        """Args:
        tensors: all exchanged tensors before the first round, by canonical key.
        """
        self.tensors = tensors
        self.optimizer = experiment.server_optimizer.start()
        self._experiment = experiment
        self._exchange = exchange

    def rank(self, site: str) -> int | None:
        """At which the site trains LoRA, if that is not the experiment's."""
        return self._experiment.federation.lora_ranks.get(site)

    def exchange(self, site: str) -> Exchange:
        """What the site exchanges."""
        return self._exchange.at_rank(self.rank(site))

    def payload(self, site: str, since: int, round_number: int) -> Tensors:
        """What to send to a site that holds the aggregate of `since` finished rounds.

        Raises:
            UserError: if ``payload.down`` cannot write a value.
        """
        tensors = {key: self.tensors[key] for key in self._exchange.down(since, round_number)}
        return self._experiment.payload.down.encode(lora_pairs.sliced(tensors, self.rank(site)))

    def result(self, tensors: Tensors, finished_rounds: int) -> Tensors:
        """What of `tensors` so many rounds have changed; the rest is the backbone's."""
        return {key: tensors[key] for key in self._exchange.changed(finished_rounds)}

    def state(self, finished_rounds: int) -> Tensors:
        """What a server needs that goes on after so many rounds."""
        return {key: self.tensors[key] for key in self._exchange.down(0, finished_rounds)}

    def take_over(self, state: Tensors, finished_rounds: int) -> None:
        """Goes on from the `state` of a server after so many rounds. Raises TensorError if it is not one of this experiment."""
        self.tensors = {**self.tensors, **check_tensors(state, self._exchange.down(0, finished_rounds))}

    def header(self) -> dict:
        """What a file says that `result` is kept in, beside the usual."""
        return {}

    def start_round(self, round_number: int) -> "OpenRound":
        """A round, counted from 0, that waits for results."""
        return OpenRound(self, self._experiment, self._exchange, round_number)

    def finish_round(self, finished: "OpenRound", sites: int) -> dict[str, float]:
        """Makes `tensors` those that the next round starts from.

        Args:
            sites: how many there are, with those that gave no result.

        Returns:
            What there is to say about the aggregation, by name: ``lora_deviation``, see `LoraDeviation.value`; with
            ``privacy.client`` instead ``client_epsilon``, see `pt_peft.privacy.plan.client_epsilon`.

        Raises:
            ValueError: if the round has no result.
        """
        step = self.optimizer.step(self.tensors, finished.aggregator.result())
        if self._exchange.control:
            # Sites without a result keep their variate: their change is zero.
            share = finished.results / sites
            step |= {key: self.tensors[key] + share * change for key, change in finished.control.result().items()}
        self.tensors = {**self.tensors, **{key: value.astype(self.tensors[key].dtype) for key, value in step.items()}}
        if self._experiment.privacy.client:  # says nothing of the updates but what the noise lets through
            return privacy_note(self._experiment, finished.number)
        deviation = finished.deviation.value()
        return {} if deviation is None else {"lora_deviation": deviation}


def privacy_note(experiment: Experiment, round_number: int) -> dict[str, float]:
    """What the aggregates have cost the sites after a round, by name; empty if the experiment claims nothing for sites."""
    spent = client_epsilon(experiment, round_number + 1)
    return {} if spent is None else {"client_epsilon": spent}


class OpenRound:
    """Takes the results of one round."""

    def __init__(self, server: FederationServer, experiment: Experiment, exchange: Exchange, number: int):
        self.results = 0
        self.aggregator = _aggregator(experiment, server.tensors, number)
        self.deviation = LoraDeviation()
        self.control = RunningMean(by_samples=False)
        self._server = server
        self._payload = experiment.payload
        self._exchange = exchange
        self.number = number
        """From 0."""

    def add(self, site: str, payload: object, num_samples: int) -> None:
        """Takes the result of a site. Raises TensorError, and adds nothing, if it is not what the site has to send, or larger
        than `LARGEST`.
        """
        exchange = self._server.exchange(site)
        tensors = self._payload.up.decode(payload, exchange.up(self.number))
        if self._payload.changes:
            tensors |= self._changed(site, {key: tensors[key] for key in exchange.trained(self.number)})
        for key, value in tensors.items():
            if (peak := float(np.abs(value).max(initial=0))) > LARGEST:
                raise TensorError(f"tensor '{key}' has values up to {peak:.3g}; at most {LARGEST:g} would be right")
        tensors = lora_pairs.padded(tensors, self._exchange.specs)
        control = {key: tensors.pop(key) for key in self._exchange.control}
        result = SiteResult(site, tensors, num_samples)
        self.aggregator.add(result)
        self.deviation.add(result)
        if control:
            self.control.add(SiteResult(site, control, num_samples))
        self.results += 1

    def _changed(self, site: str, changes: Tensors) -> Tensors:
        """The server's own tensors with the changes of a site, at the rank of both."""
        before = lora_pairs.sliced({key: self._server.tensors[key] for key in changes}, self._server.rank(site))
        with np.errstate(over="ignore"):
            after = {key: np.asarray(before[key] + change) for key, change in changes.items()}
        return check_tensors(after, self._server.exchange(site).trained(self.number))


def _aggregator(experiment: Experiment, before: Tensors, round_number: int) -> Aggregator:
    privacy = experiment.privacy
    if privacy.client and privacy.client.where == "server":
        return NoisyMean(before, privacy.client, draws_for(privacy, experiment.seed, "server's noise", round_number))
    return experiment.aggregation.start(before)
