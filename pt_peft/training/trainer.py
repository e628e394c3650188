"""One site's share of a round: local training and evaluation."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from pt_peft.data.features import with_features
from pt_peft.data.site_data import FeatureSplit, ImageSplit, batches
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.files import digest_of
from pt_peft.model.adapted_model import build_model
from pt_peft.model.frozen_prefix import frozen_prefix
from pt_peft.model.planned_exchange import planned_exchange
from pt_peft.privacy.dpsgd import PrivateGradients, poisson_batches
from pt_peft.privacy.draws import Draws, draws_for
from pt_peft.privacy.plan import sampling_rate
from pt_peft.seeds import derive_seed
from pt_peft.training.adjustments import Adjustment
from pt_peft.training.imbalance import sampling_weights, training_loss
from pt_peft.training.metrics import evaluate_predictions

EVALUATION_BATCH = 256
_FLIPS = {"none": [()], "horizontal": [(), (3,)], "all": [(), (3,), (2,), (2, 3)]}
"""Axes of (B,3,S,S) that are reversed."""


@dataclass(frozen=True)
class TrainingResult:
    """What a site has to show for a round."""

    tensors: Tensors
    """All tensors of the method and the head after local training, by canonical key."""
    num_samples: int
    """Training images seen in one local epoch: the site's weight in the mean."""
    loss: float | None
    """Mean training loss over the round's steps; None under differential privacy, which a loss without noise would break."""


class LocalTrainer:
    """Trains the tensors of a method on a site's images. Holds nothing that a later call depends on, so that one trainer
    can serve several sites in turn.
    """

    def __init__(self, experiment: Experiment, weights: Path, device: torch.device):
        """Builds the model on `device`.

        Args:
            weights: the backbone's file; its digest is the caller's to check.

        Raises:
            UserError: as `build_model` and `planned_exchange` do.
        """
        self.experiment = experiment
        self.device = device
        self.model = build_model(experiment.model, weights)
        self.exchange = planned_exchange(self.model, experiment)
        self._prefix = frozen_prefix(self.model)
        self.initial: Tensors = self.model.state()
        """The tensors before the first round."""
        self.model.module.to(device)
        self._mean = torch.tensor(experiment.backbone.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(experiment.backbone.std, device=device).view(1, 3, 1, 1)

    def train(
        self,
        site: str,
        split: ImageSplit,
        tensors: Tensors,
        round_number: int,
        on_step: Callable[[torch.Tensor], None] = lambda loss: None,
        adjust: Iterable[Adjustment] = (),
    ) -> TrainingResult:
        """Starts from `tensors` and trains ``training.local_epochs`` epochs.

        Args:
            site: its name; seeds shuffling, augmentation and dropout together with the round.
            split: its training images, one or more.
            tensors: where the round starts, by canonical key; one that is not given has its `initial` value.
            round_number: counted from 0; also places the learning-rate schedule, and says which tensors train.
            on_step: called with the loss of each step; never with ``privacy.sample``.
            adjust: what is done to each step's gradients, in this order.

        Raises:
            UserError: if the loss, or with ``privacy.sample`` a tensor, stops being finite.
        """
        training = self.experiment.training
        inputs = split
        if not self.experiment.data.augment and not self.experiment.privacy.sample:
            inputs = self._with_features(split)
        logits_of = self._forward(inputs)
        self.model.load({**self.initial, **tensors})
        # A fresh optimiser each round: a restarted process then loses nothing.
        keys = self.exchange.trained(round_number).keys() | self.model.personal
        optimizer = self._optimizer(keys)
        peak_rates = [group["lr"] for group in optimizer.param_groups]
        training_now = {key: parameter for key, parameter in self.model.trained.items() if key in keys}
        adjustments = [attach(training_now) for attach in adjust]
        loss_of = training_loss(self.experiment, split.labels, self.device)
        draws = gradients = None
        if sample := self.experiment.privacy.sample:
            draws = draws_for(self.experiment.privacy, self.experiment.seed, "sample privacy", site, round_number)
            gradients = PrivateGradients(self.model.module, training_now, sample, training.batch_size, draws)
        steps_per_round = math.ceil(len(split) / training.batch_size) * training.local_epochs
        total_steps = steps_per_round * self.experiment.federation.rounds
        step = round_number * steps_per_round
        losses = []
        self.model.module.train()
        for epoch in range(training.local_epochs):
            drawn = self._drawn_batches(split, draws) if draws else self._batches(inputs, site, round_number, epoch)
            for images, labels in drawn:
                if training.schedule == "cosine":
                    factor = 0.5 * (1 + math.cos(math.pi * step / total_steps))
                    for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                        group["lr"] = peak * factor
                if gradients:
                    gradients(self._logits, loss_of, images.to(self.device), labels.to(self.device))
                else:
                    loss = loss_of(logits_of(images), labels.to(self.device))
                    optimizer.zero_grad()
                    loss.backward()
                    losses.append(loss.detach())
                for adjustment in adjustments:
                    adjustment()
                optimizer.step()
                if losses:
                    on_step(losses[-1])
                step += 1
        mean_loss = float(torch.stack(losses).mean()) if losses else None
        trained = self.model.state()
        wrong = "" if all(np.isfinite(value).all() for value in trained.values()) else "a trained tensor is not finite"
        if mean_loss is not None and not math.isfinite(mean_loss):
            wrong = f"the training loss is {mean_loss}"
        if wrong:
            raise UserError(
                f"site {site}, round {round_number}: {wrong}; a smaller "
                f"training.learning_rate than {training.learning_rate} may be right."
            )
        return TrainingResult(trained, len(split), mean_loss)

    def evaluate(self, tensors: Tensors, split: ImageSplit) -> dict:
        """Metrics (see `evaluate_predictions`) on `split` of the model with `tensors`, given as in `train`."""
        return evaluate_predictions(*self.predict(tensors, split), self.experiment.data.task)

    @torch.inference_mode()
    def predict(self, tensors: Tensors, split: ImageSplit) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits float32 (N,K), on the CPU, and labels of all images of `split`, from the model with `tensors`."""
        self.model.load({**self.initial, **tensors})
        self.model.module.eval()
        logits, labels = [], []
        flips = _FLIPS[self.experiment.data.test_time_flips]
        inputs = self._with_features(split) if len(flips) == 1 else split
        logits_of = self._forward(inputs)
        for images, targets in batches(inputs, EVALUATION_BATCH, seed=None):
            flipped = [logits_of(images.flip(axes)) for axes in flips]
            logits.append(torch.stack(flipped).mean(dim=0).cpu())
            labels.append(targets)
        return torch.cat(logits), torch.cat(labels)

    def _forward(self, split: ImageSplit | FeatureSplit) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function from batches of `split` to logits float32 (B,K)."""
        if isinstance(split, FeatureSplit):
            return self._feature_logits
        return lambda images: self._logits(images, self.model.module)

    def _logits(self, images: torch.Tensor, module: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Logits float32 (B,K) of images float32 (B,3,S,S) in [0,1], by the model or a `module` that stands for it."""
        with self._precision():
            return module(self._normalised(images)).float()

    def _feature_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B,K) of features of the frozen prefix, float32 (B,…), by the rest of the model."""
        with self._precision():
            return self._prefix.logits(features.to(self.device)).float()

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        return (images.to(self.device) - self._mean) / self._std

    def _precision(self) -> torch.autocast:
        half = self.experiment.training.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half)

    def _with_features(self, split: ImageSplit) -> ImageSplit | FeatureSplit:
        """The features of `split` if a part of the model is frozen and the cache has room for them, else `split`."""
        if self._prefix is None:
            return split
        key = {
            "backbone": self.experiment.backbone.model_dump(mode="json"),
            "seed": self.experiment.seed if self.experiment.backbone.allow_missing else None,
            "blocks": self._prefix.blocks,
            "precision": self.experiment.training.precision,
            "device": self.device.type,
            "versions": [torch.__version__, timm.__version__, _code_version()],
        }
        return with_features(split, key, self._features) or split

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> np.ndarray:
        self.model.module.eval()
        with self._precision():
            pixels = torch.tensor(images).float().div_(255)
            return self._prefix.features(self._normalised(pixels)).float().cpu().numpy()

    def _batches(
        self, split: ImageSplit | FeatureSplit, site: str, round_number: int, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of one epoch; also seeds its dropout."""
        seed, augment = self.experiment.seed, self.experiment.data.augment
        torch.manual_seed(derive_seed(seed, "dropout", site, round_number, epoch))
        weights = sampling_weights(self.experiment, split.labels)
        shuffle = derive_seed(seed, "shuffle", site, round_number, epoch)
        batch_size = self.experiment.training.batch_size
        return batches(split, batch_size, seed=shuffle, augment=augment, weights=weights)

    def _drawn_batches(self, split: ImageSplit, draws: Draws) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of one epoch under differential privacy; also seeds its dropout."""
        torch.manual_seed(draws.seed())
        rate = sampling_rate(self.experiment, len(split))
        steps = math.ceil(len(split) / self.experiment.training.batch_size)
        return poisson_batches(split, rate, steps, self.experiment.data.augment, draws)

    def _optimizer(self, keys: Set[str]) -> torch.optim.Optimizer:
        """AdamW on the tensors in `keys`, which alone are marked as trained."""
        training = self.experiment.training
        head = {id(parameter) for parameter in self.model.module.get_classifier().parameters()}
        rates = {False: training.learning_rate, True: training.head_learning_rate or training.learning_rate}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.model.activate(keys):
            groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
        return torch.optim.AdamW(
            {"params": members, "lr": rates[in_head], "weight_decay": training.weight_decay * decays}
            for (in_head, decays), members in groups.items()
        )


@functools.cache
def _code_version() -> str:
    """SHA-256 over the source of the modules beside this one, which make and run the model."""
    return digest_of(Path(__file__).parent.glob("*.py"))


def pick_device(name: str, source: str = "site.json: field 'device'") -> torch.device:
    """The torch device that a site's ``device`` field, or `source`, names; ``auto`` takes a GPU if there is one.

    Raises:
        UserError: if it is ``cuda`` and this machine has none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{source} is 'cuda', but torch finds no GPU here; 'auto' or 'cpu' would be right.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
