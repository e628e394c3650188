"""What a worker does for its user: it answers the requests of one connection."""

import logging
import time
from collections.abc import Callable, Container, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pt_peft import gpu, reasons
from pt_peft.data.items import SPLITS
from pt_peft.data.site_data import SiteData, load_site_data
from pt_peft.data.sources import site_images
from pt_peft.environment import own_code
from pt_peft.errors import UserError, told_as
from pt_peft.exchange import lora_pairs
from pt_peft.exchange.tensors import TensorError, Tensors, check_tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.site import Site
from pt_peft.experiment.statistics import Stage, parted, sends_model, stage_bytes, stage_of
from pt_peft.federation import site_statistics, transfer
from pt_peft.federation.image_statistics import image_report
from pt_peft.federation.local_round import local_round, own_model, starting_model, without_last_round
from pt_peft.federation.site_statistics import received_counts
from pt_peft.files import tree_bytes
from pt_peft.model.adapted_model import build_model
from pt_peft.model.adapter_file import adapter_header, load_adapter, save_adapter
from pt_peft.model.backbone import pinned_weights
from pt_peft.model.method import components
from pt_peft.model.planned_exchange import initial_exchanged, planned_exchange
from pt_peft.privacy.budget import Budget
from pt_peft.privacy.plan import plan, plan_from
from pt_peft.schema import parse
from pt_peft.statistics.moments import class_counts, class_weights, effective_images
from pt_peft.training.footprint import check_model
from pt_peft.training.trainer import LocalTrainer, site_device
from pt_peft.worker.local_adapter import LocalAdapter
from pt_peft.worker.prepared import prepared_trainer, trainer_for
from pt_peft.worker.requests import Evaluation, Opening, RoundStart, Statistics

log = logging.getLogger(__name__)

RECEIVED = "received.safetensors"
"""File with the last aggregate of each tensor that does not travel in every round."""
OWN_ADAPTER = "own_adapter.safetensors"
"""File with the site's own model, which Ditto trains, after its last training."""

Reply = tuple[Mapping[str, object], Tensors]
"""The reply's JSON part and its tensors."""


class RequestHandler:
    """Answers the requests of one user. `open` comes first; other requests build what they need on first use."""

    def __init__(self) -> None:
        self.requests: dict[str, Callable[[Any, Tensors], Reply]] = {
            "open": self.open,
            "exchange": self.exchange,
            "images": self.images,
            "image_statistics": self.image_statistics,
            "initial_state": self.initial_state,
            "train": self.train,
            "evaluate": self.evaluate,
            "statistics": self.statistics,
            "local_state": self.local_state,
        }
        """The requests by name; `pt_peft.worker.requests` has the types of their JSON parts."""

    def open(self, message: Opening, _: Tensors) -> Reply:
        """Takes what all further requests are about. Raises UserError for an invalid experiment or site."""
        with told_as(reasons.ExperimentInvalid()):
            self.experiment = parse(Experiment, message["experiment"], "experiment.json")
            components(self.experiment.method)
        with told_as(reasons.SiteSettings()):
            self.site = parse(Site, message["site"], "site.json")
        self.name, self.names = message["name"], message["names"]
        self.run_dir = Path(message["run_dir"])
        earlier = Path(message["continues"]) if message["continues"] else None
        self.local_adapter = LocalAdapter(self.run_dir, earlier)
        self.budget = Budget(self.run_dir.parent, self.run_dir.name, earlier and earlier.name)
        return {}, {}

    def exchange(self, _message: Mapping[str, object], _: Tensors) -> Reply:
        """Tells which tensors travel in which round, as `Exchange.to_json`; needs no weights.

        Raises:
            OutsideLimits: if the limits refuse the experiment or its model; so do the requests below.
        """
        self._check_tensors()
        if ready := self._prepared:
            return ready.exchange.to_json(), {}
        with told_as(reasons.ExperimentInvalid()):
            return planned_exchange(build_model(self.experiment.model, None), self.experiment).to_json(), {}

    def images(self, _message: Mapping[str, object], _: Tensors) -> Reply:
        """Counts the images of each split that the experiment uses of the site, and decodes none. Raises UserError."""
        with told_as(reasons.Data()):
            found = site_images(self.experiment, self.site, self.name, self.names)
        return {split: len(found.items(split)) for split in SPLITS}, {}

    def image_statistics(self, _message: Mapping[str, object], _: Tensors) -> Reply:
        """Reads and counts the site's images, see `pt_peft.federation.image_statistics`. Raises UserError."""
        with told_as(reasons.Data()):
            found = site_images(self.experiment, self.site, self.name, self.names)
            return image_report(self.experiment, self.site, found), {}

    def initial_state(self, _message: Mapping[str, object], _: Tensors) -> Reply:
        """Returns the `exchange` and the exchanged tensors before the first round, which the experiment determines."""
        self._check_tensors()
        if ready := self._prepared:
            return ready.exchange.to_json(), initial_exchanged(self.experiment, ready.exchange, ready.initial)
        methods = [method for method, _ in components(self.experiment.method)]
        needs_weights = any(method.trains_backbone or method.starts_from_backbone for method in methods)
        weights = self._weights if needs_weights else None
        with told_as(reasons.ExperimentInvalid()):
            model = build_model(self.experiment.model, weights)
            exchange = planned_exchange(model, self.experiment)
        return exchange.to_json(), initial_exchanged(self.experiment, exchange, model.state())

    def train(self, message: RoundStart, tensors: Tensors) -> Reply:
        """Trains for one round.

        It decodes the payload down, validates the federation's model, pays for the round's privacy, trains, keeps what
        stays at the site, and returns the report and the payload up.

        Args:
            message: which round.
            tensors: the payload down.

        Raises:
            TensorError: if the payload is not what it should be.
            UserError: if the site has no training images, or cannot train with its settings.
            OutsideLimits: if the site's limits do not allow the round.
        """
        started = time.monotonic()
        self.site.limits.check_disk(tree_bytes(self.run_dir))
        number, exchange = message["round"], self._trainer.exchange
        self.site.limits.check_bytes(self.experiment, exchange.at_rank(self._rank), number)
        sent, statistics = parted(tensors)
        aggregate = self._aggregate(message, sent)
        counts = received_counts(self.experiment, statistics)
        if not len(self._data.train):
            raise UserError(f"site {self.name} has no training images.").told_as(reasons.NoImages())
        self.site.limits.check_images(self.experiment, len(self._data.train))
        if counts is not None:
            own = class_counts(np.asarray(self._data.train.labels), len(counts))
            self.site.limits.check_weighed(int(effective_images(own, class_weights(counts))))
        kept = self._kept(number, message.get("taken"))
        validation = self._evaluate(aggregate, kept, "val")
        spent = self._spend(number)
        secret = self.site.limits.secret_draws is True
        result = local_round(
            self._trainer, self.name, self._data.train, aggregate, kept, number, secret=secret, federation_counts=counts
        )
        header = {"site": self.name, "round": number, **adapter_header(self.experiment, {self._trainer.precision})}
        changed = exchange.changed(number + 1)
        self.local_adapter.save({**_with_keys(result.state, changed), **result.kept}, header)
        if own := own_model(result.kept):
            needed = changed.keys() | self._trainer.model.personal
            save_adapter(self.run_dir / OWN_ADAPTER, _with_keys(own, needed), {**header, "round": number + 1})
        reply = {
            "num_samples": result.num_samples,
            "train_loss": result.loss,
            "epsilon": spent,
            **validation,
            **self._about(started),
        }
        return reply, result.payload

    def evaluate(self, message: Evaluation, tensors: Tensors) -> Reply:
        """Evaluates the payload down on each of the ``splits``; metrics are null for a split without images."""
        started = time.monotonic()
        aggregate, kept = self._aggregate(message, tensors), self._kept(message["round"])
        metrics: dict[str, object] = {}
        for split in message["splits"]:
            metrics |= self._evaluate(aggregate, kept, split)
        return {**metrics, **self._about(started)}, {}

    def statistics(self, message: Statistics, tensors: Tensors) -> Reply:
        """Answers a stage of statistics with what `site_statistics.answer` makes of the site's images.

        Raises:
            TensorError: if what has come down is not what it should be.
            UserError: if the experiment has no such stage then.
            OutsideLimits: if the site's limits do not allow it.
            OSError: as `Budget.charge` does.
        """
        started = time.monotonic()
        limits = self.site.limits
        limits.check_disk(tree_bytes(self.run_dir))
        stage = stage_of(self.experiment, message["stage"], message["round"])
        if stage is None:
            raise UserError(f"the experiment has no stage '{message['stage']}' after {message['round']} rounds.")
        limits.check_nbytes(stage_bytes(self.experiment, self._trainer.exchange.at_rank(self._rank), stage).up)
        sent, received = parted(tensors)
        model = Tensors()
        if sends_model(stage):
            model = starting_model(self._trainer, self._aggregate(message, sent), {})
        elif sent:
            raise TensorError(f"a model has come for stage '{stage.name}', which needs none")
        least, least_evaluated = limits.least_counted, limits.min_evaluated_images or 1
        released = stage.name == "moments" and self.experiment.privacy.statistics is not None
        spent = {"epsilon": self._spend(stage)} if released else {}
        found = site_statistics.answer(
            self._trainer, stage, self._data, model, received, least, least_evaluated,
            site=self.name, secret=limits.secret_draws is True,
        )  # fmt: skip
        if isinstance(images := found.report.get("num_samples"), int):
            limits.check_sums(images)
        return {**found.report, **spent, **self._about(started)}, found.tensors

    def local_state(self, _message: Mapping[str, object], _: Tensors) -> Reply:
        """Returns the site's exchanged tensors after its last local training, also across a restart."""
        if self.experiment.privacy.client:
            raise UserError(
                "the site's own tensors have no noise that protects the site, so that they stay where they are."
            ).told_as(reasons.HeldBack(what="task"))
        tensors, header = self.local_adapter.last()
        exchange, rounds = self._trainer.exchange, header["round"] + 1
        tensors = lora_pairs.sliced(_with_keys(tensors, exchange.changed(rounds)), self._rank)
        return {"round": header["round"]}, check_tensors(tensors, exchange.at_rank(self._rank).changed(rounds))

    def _aggregate(self, message: RoundStart, tensors: Tensors) -> Tensors:
        """Decodes the payload down, and adds what the site holds of earlier rounds.

        Returns:
            The server's tensors by key, at the experiment's rank.

        Raises:
            TensorError: if `tensors` are not what has changed since ``since`` finished rounds.
            UserError: if the site does not hold the aggregate of ``since`` finished rounds.
        """
        exchange, round_number, since = self._trainer.exchange, message["round"], message["since"]
        if since is None:  # not from our server: everything, and not encoded
            since = 0
            tensors = check_tensors(tensors, exchange.at_rank(self._rank).down(since, round_number))
            tensors = lora_pairs.padded(tensors, exchange.specs)
        else:
            tensors = transfer.decode_down(self.experiment, exchange, self.name, tensors, since, round_number)
        if exchange.rotating:
            tensors = {**self._held(since, round_number), **tensors}
            rotating = _with_keys(tensors, tensors.keys() - exchange.always)
            save_adapter(self.run_dir / RECEIVED, rotating, {"rounds": round_number})
        return tensors

    def _kept(self, round_number: int, taken: int | None = None) -> Tensors:
        """What the site kept to itself in the last training before that round; `taken` as in `RoundStart`."""
        state, trained = self.local_adapter.before(round_number)
        kept = {key: value for key, value in state.items() if key not in self._trainer.exchange.specs}
        return kept if taken in (None, trained) else without_last_round(kept)

    def _held(self, since: int, round_number: int) -> Tensors:
        """The rotating tensors of earlier rounds, as the site decoded them."""
        try:
            held, header = load_adapter(self.run_dir / RECEIVED)
            rounds = header["rounds"]
        except UserError:  # the file does not exist or is damaged
            held, rounds = Tensors(), 0
        if not isinstance(rounds, int) or rounds > round_number:  # the server was restarted from an earlier round
            held, rounds = Tensors(), 0
        if rounds < since:
            raise UserError(
                f"site {self.name} holds the aggregate of {rounds} finished rounds, but was sent only what has changed "
                f"since {since}; it will be sent all in the next round."
            ).told_as(reasons.MissedRounds(held=rounds, needed=since))
        return held

    def _evaluate(self, aggregate: Tensors, kept: Tensors, name: str) -> dict[str, object]:
        """Metrics of the federation's model on the split `name`, and of the site's own model if it has one.

        They are null for a split of fewer images than the site's limits ask for.
        """
        split = getattr(self._data, name)
        if len(split) < (self.site.limits.min_evaluated_images or 1):
            return {name: None}
        model = starting_model(self._trainer, aggregate, kept)
        found: dict[str, object] = {name: self._trainer.evaluate(model, split)}
        if own := own_model(kept):
            found[f"own_{name}"] = self._trainer.evaluate({**model, **own}, split)
        return found

    def _spend(self, at: Stage | int) -> float | None:
        """Pays for a release, or the training of a round, before it begins, and returns the report's ``epsilon``.

        Args:
            at: the stage of the release, or the number of the round.

        Raises:
            OutsideLimits, UserError, OSError: as `Budget.charge` does.
        """
        if not (self.experiment.privacy.claimed and self.experiment.privacy.by_sites):
            return None
        images = len(self._data.train)
        released = isinstance(at, Stage)
        now = plan(self.experiment, images, int(not released), int(released))
        ahead = plan_from(self.experiment, images, at)
        number = at.round_number if released else at
        return self.budget.charge(self.experiment, now, ahead, number, self.site.limits.max_epsilon)

    def _about(self, started: float) -> dict[str, object]:
        """What every report says of the work that began then, in seconds of the monotonic clock."""
        return {
            "seconds": time.monotonic() - started,
            "code": own_code().model_dump(),
            "precision": self._trainer.precision,
        }

    def _check_tensors(self) -> None:
        """Raises OutsideLimits if the limits refuse the experiment or the tensors of its model."""
        with told_as(reasons.ExperimentInvalid()):
            check_model(self.experiment, self.site.limits, None, trains=False)

    @property
    def _rank(self) -> int | None:
        return self.experiment.federation.lora_ranks.get(self.name)

    @cached_property
    def _prepared(self) -> LocalTrainer | None:
        return prepared_trainer(self.experiment, self.site)

    @cached_property
    def _weights(self) -> Path:
        with told_as(reasons.Backbone()):
            return pinned_weights(self.experiment.backbone, self.site)

    @cached_property
    def _data(self) -> SiteData:
        with told_as(reasons.Data()):
            return load_site_data(self.experiment, self.site, self.name, self.names)

    @cached_property
    def _trainer(self) -> LocalTrainer:
        with told_as(reasons.ExperimentInvalid()):
            check_model(self.experiment, self.site.limits, lambda: self._weights, trains=True)
        with told_as(reasons.SiteSettings()):
            device = site_device(self.site)
        log.info("site %s computes on %s", self.name, gpu.shown(device))
        if self._prepared and self._prepared.device == device:
            return self._prepared
        weights = self._weights
        with told_as(reasons.ExperimentInvalid()):
            return trainer_for(self.experiment, weights, device, compiled=self.site.compile)


def _with_keys(tensors: Tensors, keys: Container[str]) -> Tensors:
    return {key: value for key, value in tensors.items() if key in keys}
