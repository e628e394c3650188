"""One site's share of a round: local training and evaluation."""

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue
from torch import nn

from pt_peft import gpu, reasons
from pt_peft.code_key import code_key
from pt_peft.data.augmentation import views_of
from pt_peft.data.device_batches import DeviceSplits
from pt_peft.data.features import with_features
from pt_peft.data.site_data import FeatureSplit, ImageSplit, batches
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.experiment import Experiment
from pt_peft.experiment.sections import Precision, TestTimeFlips
from pt_peft.experiment.site import Site
from pt_peft.model.adapted_model import build_model
from pt_peft.model.frozen_prefix import FrozenPrefix, frozen_prefix
from pt_peft.model.model_input import Normalisation, autocast, over_flips
from pt_peft.model.planned_exchange import planned_exchange
from pt_peft.model.precision import choose_attention, resolved_precision
from pt_peft.privacy.dpsgd import PrivateGradients, poisson_batches
from pt_peft.privacy.draws import Draws, draws_for, training_seed
from pt_peft.privacy.plan import sampling_rate
from pt_peft.statistics.moments import Float
from pt_peft.torch_random import seed_torch
from pt_peft.training.adjustments import Adjustment
from pt_peft.training.imbalance import sampling_weights, training_loss
from pt_peft.training.metrics import Metrics, evaluate_predictions
from pt_peft.training.schedule import share_of_peak

_logger = logging.getLogger(__name__)

EVALUATION_BATCH = 256
"""Images."""
GPU_EVALUATION_BATCH = 1024
"""Images at most."""
EVALUATION_COPIES = 3
"""A forward pass without gradients holds about so many of its largest tensors at once."""


Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of one site's local training in a round."""

    tensors: Tensors
    """All tensors of the method and the head after local training, by canonical key."""
    num_samples: int
    """Training images seen in one local epoch: the site's weight in the mean."""
    loss: float | None
    """Mean training loss over the round's steps; None with ``privacy.sample``, as it would have no noise."""


class LocalTrainer:
    """Trains the tensors of a method on a site's images.

    It holds nothing that a later call depends on, so that one trainer can serve several sites in turn.

    Attributes:
        experiment: what is trained, and how.
        device: where the model is.
        model: the adapted model.
        precision: that the model computes in on `device`.
        exchange: which tensors travel in which round.
        initial: the tensors before the first round, by canonical key.
    """

    def __init__(self, experiment: Experiment, weights: Path, device: torch.device, *, compiled: bool = False):
        """Builds the model on `device`.

        Args:
            experiment: what is trained, and how.
            weights: the backbone's file; the caller has checked its digest.
            device: where the model computes.
            compiled: whether training steps run through torch's compiler, if it can compile the model.

        Raises:
            UserError: as `build_model` and `planned_exchange` do.
        """
        self.experiment = experiment
        self.device = device
        self.precision: Precision = resolved_precision(experiment.training.precision, device)
        self.model = build_model(experiment.model, weights)
        choose_attention(self.model.module, self._most_tokens(), self.precision, device)
        self.exchange = planned_exchange(self.model, experiment)
        self._prefix = frozen_prefix(self.model)
        self.initial: Tensors = self.model.state()
        self.model.module.to(device)
        self._normalise = Normalisation(experiment.backbone).to(device)
        self._splits = DeviceSplits(device) if device.type == "cuda" else None
        self._compiles = compiled
        self._compiled: dict[type[ImageSplit | FeatureSplit], Forward] = {}

    def train(
        self,
        site: str,
        split: ImageSplit,
        tensors: Tensors,
        round_number: int,
        on_step: Callable[[torch.Tensor], None] = lambda loss: None,
        adjust: Iterable[Adjustment] = (),
        *,
        secret: bool = False,
        federation_counts: Float | None = None,
    ) -> TrainingResult:
        """Trains ``training.local_epochs`` epochs from `tensors` on.

        Args:
            site: its name; seeds shuffling, augmentation and dropout together with the round, unless `secret`.
            split: its training images, one or more.
            tensors: the start, by canonical key; a tensor that is not given has its `initial` value.
            round_number: counted from 0; also places the learning-rate schedule and chooses the tensors that train.
            on_step: called with the loss of each step; never called with ``privacy.sample``.
            adjust: adjustments of each step's gradients, in this order.
            secret: whether all draws are secret, by ``limits.secret_draws`` of the site. If not, the same call gives
                the same result, bit for bit, unless the experiment asks for secret noise.
            federation_counts: see `training_loss`.

        Raises:
            UserError: if the loss, or with ``privacy.sample`` a tensor, stops being finite.
        """
        with gpu.exact(self.device):
            return self._train(site, split, tensors, round_number, on_step, adjust, secret, federation_counts)

    def _train(
        self,
        site: str,
        split: ImageSplit,
        tensors: Tensors,
        round_number: int,
        on_step: Callable[[torch.Tensor], None],
        adjust: Iterable[Adjustment],
        secret: bool,
        federation_counts: Float | None,
    ) -> TrainingResult:
        training = self.experiment.training
        inputs = split if self.experiment.privacy.sample else self._with_features(split, self._views())
        self.model.load({**self.initial, **tensors})
        # A fresh optimiser each round: a restarted process then loses nothing.
        keys = self.exchange.trained(round_number).keys() | self.model.personal
        optimizer = self._optimizer(keys)
        peak_rates = [group["lr"] for group in optimizer.param_groups]
        training_now = {key: parameter for key, parameter in self.model.trained.items() if key in keys}
        adjustments = [attach(training_now) for attach in adjust]
        loss_of = training_loss(self.experiment, split.labels, self.device, federation_counts)
        draws = gradients = None
        if sample := self.experiment.privacy.sample:
            draws = draws_for(
                self.experiment.privacy, self.experiment.seed, "sample privacy", site, round_number, secret=secret
            )
            gradients = PrivateGradients(self.model.module, training_now, sample, training.batch_size, draws)
        steps_per_round = math.ceil(len(split) / training.batch_size) * training.local_epochs
        total_steps = steps_per_round * self.experiment.federation.rounds
        warm_up = round(training.warmup_rounds * steps_per_round)
        step = round_number * steps_per_round
        losses: list[torch.Tensor] = []
        self.model.module.train()
        logits_of = self._forward(inputs)
        for epoch in range(training.local_epochs):
            drawn = (
                self._drawn_batches(split, draws)
                if draws
                else self._batches(inputs, site, round_number, epoch, secret=secret)
            )
            for images, labels in drawn:
                if training.schedule == "cosine" or step < warm_up:
                    factor = share_of_peak(step, total_steps, warm_up)
                    for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                        group["lr"] = peak * factor
                if gradients:
                    gradients(self._logits, loss_of, images.to(self.device), labels.to(self.device))
                else:
                    loss = loss_of(logits_of(images), labels.to(self.device))
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
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
            ).told_as(reasons.NotFinite())
        return TrainingResult(trained, len(split), mean_loss)

    def evaluate(self, tensors: Tensors, split: ImageSplit) -> Metrics:
        """Metrics of the model with `tensors` on `split`.

        Args:
            tensors: as in `train`.
            split: one image or more.
        """
        return evaluate_predictions(*self.predict(tensors, split), self.experiment.data.task)

    @torch.inference_mode()
    def predict(self, tensors: Tensors, split: ImageSplit) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions of the model with `tensors` for all images of `split`.

        Args:
            tensors: as in `train`.
            split: one image or more.

        Returns:
            Logits float32 (N,K), on the CPU, and the labels of `split`.
        """
        logits = self._evaluated(tensors, split, self.experiment.data.test_time_flips)
        return logits, torch.as_tensor(np.asarray(split.labels))

    @torch.inference_mode()
    def features(self, tensors: Tensors, split: ImageSplit, flips: TestTimeFlips) -> npt.NDArray[np.float32]:
        """What the classifier gets of all images of `split`, in eval mode and without augmentation.

        Args:
            tensors: as in `train`.
            split: one image or more.
            flips: over which each image's features are averaged.

        Returns:
            Float32 (N,d).
        """
        entered: list[torch.Tensor] = []
        classifier = self.model.module.get_classifier()
        hook = classifier.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        try:
            return self._evaluated(tensors, split, flips, lambda _: entered.pop().float()).numpy()
        finally:
            hook.remove()

    def _evaluated(
        self,
        tensors: Tensors,
        split: ImageSplit,
        flips: TestTimeFlips,
        of_logits: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    ) -> torch.Tensor:
        """What `of_logits` makes of each batch's logits in eval mode, averaged over `flips`; on the CPU."""
        with gpu.exact(self.device):
            self.model.load({**self.initial, **tensors})
            self.model.module.eval()
            inputs = self._with_features(split, (0,)) if flips == "none" else split
            logits_of = self._forward(inputs)
            found = [
                over_flips(lambda images: of_logits(logits_of(images)), images, flips)
                for images, _ in batches(inputs, self._evaluation_batch(), seed=None, on=self._splits)
            ]
            return torch.cat(found).cpu()

    def _evaluation_batch(self) -> int:
        """Images that are evaluated at a time: on a GPU as many as keep it busy, if a quarter of its memory suffices.

        The most that evaluation holds of an image is what the MLP of a block makes of its tokens.
        """
        if self.device.type != "cuda":
            return EVALUATION_BATCH
        nbytes = EVALUATION_COPIES * 4 * 4 * self.model.module.embed_dim * self._most_tokens()
        return max(1, min(GPU_EVALUATION_BATCH, gpu.room(self.device) // 4 // nbytes))

    def _most_tokens(self) -> int:
        """Tokens of an image in a block; as many as with patches of 8 pixels for a model that does not tell."""
        module, size = self.model.module, self.experiment.backbone.image_size
        return (getattr(module.patch_embed, "num_patches", None) or (size // 8) ** 2) + module.num_prefix_tokens

    def _forward(self, split: ImageSplit | FeatureSplit) -> Forward:
        """The function from batches of `split` to logits float32 (B,K)."""
        prefix, module, logits = self._prefix, self.model.module, self._logits
        forward: Forward = module
        if prefix and isinstance(split, FeatureSplit):
            forward, logits = prefix.logits, self._feature_logits
        # Behind a prefix of all blocks a classifier is left, which gains nothing.
        classifier_alone = prefix and isinstance(split, FeatureSplit) and prefix.blocks is None
        if not self._compiles or not module.training or classifier_alone or self.experiment.privacy.sample:
            return lambda batch: logits(batch, forward)
        kind = type(split)
        if kind not in self._compiled:
            self._compiled[kind] = _compile(forward, lambda step: logits(self._blank(split), step), module)
        compiled = self._compiled[kind]
        # The compiler would compile again for images that were turned in place, with other strides.
        return lambda batch: logits(batch.contiguous() if compiled != forward else batch, compiled)

    def _blank(self, split: ImageSplit | FeatureSplit) -> torch.Tensor:
        """A batch of zeros, as `split` has them."""
        size = self.experiment.backbone.image_size
        shape = split.features.shape[2:] if isinstance(split, FeatureSplit) else (3, size, size)
        return torch.zeros(min(len(split), self.experiment.training.batch_size), *shape, device=self.device)

    def _logits(self, images: torch.Tensor, module: Forward) -> torch.Tensor:
        """Logits float32 (B,K) of images float32 (B,3,S,S) in [0,1], by the model or a `module` that stands for it."""
        with autocast(self.precision, self.device):
            return module(self._normalise(images.to(self.device))).float()

    def _feature_logits(self, features: torch.Tensor, rest: Forward) -> torch.Tensor:
        """Logits float32 (B,K) of features of the frozen prefix, float32 (B,…), by the `rest` of the model."""
        with autocast(self.precision, self.device):
            return rest(features.to(self.device)).float()

    def _views(self) -> tuple[int, ...] | None:
        """Numbers of the views that training draws of an image, see `pt_peft.data.views`.

        Returns:
            None where it does not pay to keep their features: augmentation does more than to choose a view, or training
            passes over the images less often than they have views.
        """
        if not (names := self.experiment.data.augment):
            return (0,)
        views = views_of(names)
        passes = self.experiment.federation.rounds * self.experiment.training.local_epochs
        return views if views and len(views) <= passes else None

    def _with_features(self, split: ImageSplit, views: tuple[int, ...] | None) -> ImageSplit | FeatureSplit:
        """The features of `split` in each of `views`.

        Returns:
            `split` itself if `views` is None, no part of the model is frozen, or the cache has no room for them.
        """
        if self._prefix is None or views is None:
            return split
        compute = functools.partial(self._prefix.features, normalise=self._normalise, precision=self.precision)
        return with_features(split, views, self._features_key(self._prefix), compute) or split

    def _features_key(self, prefix: FrozenPrefix) -> JsonValue:
        """All that the features of an image depend on besides its pixels, which have a key of their own.

        A method should leave the frozen prefix as it is, but a custom one may not: the key has its options and code.
        """
        cuda = self.device.type == "cuda"
        methods = {one.__module__ for part in self.model.parts for one in (part.method.inject, type(part.config))}
        return {
            "model": self.experiment.model.model_dump(mode="json"),  # with the weights' digest and the normalisation
            "blocks": prefix.blocks,
            "precision": self.precision,
            "device": torch.cuda.get_device_name(self.device) if cuda else f"cpu, {torch.get_num_threads()} threads",
            "code": code_key(
                "pt_peft.model.frozen_prefix",
                "pt_peft.model.precision",
                "pt_peft.data.views",
                "pt_peft.methods",
                *sorted(methods),
            ),
        }

    def _batches(
        self, split: ImageSplit | FeatureSplit, site: str, round_number: int, epoch: int, *, secret: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of one epoch; also seeds its dropout."""
        seed, augment = self.experiment.seed, self.experiment.data.augment
        seed_torch(training_seed(seed, "dropout", site, round_number, epoch, secret=secret))
        weights = sampling_weights(self.experiment, split.labels)
        shuffle = training_seed(seed, "shuffle", site, round_number, epoch, secret=secret)
        batch_size = self.experiment.training.batch_size
        return batches(split, batch_size, seed=shuffle, augment=augment, weights=weights, on=self._splits)

    def _drawn_batches(self, split: ImageSplit, draws: Draws) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of one epoch under differential privacy; also seeds its dropout."""
        seed_torch(draws.seed())
        rate = sampling_rate(self.experiment, len(split))
        steps = math.ceil(len(split) / self.experiment.training.batch_size)
        return poisson_batches(split, rate, steps, self.experiment.data.augment, draws, self._splits)

    def _optimizer(self, keys: Set[str]) -> torch.optim.Optimizer:
        """AdamW on the tensors in `keys`, which alone get gradients."""
        training = self.experiment.training
        head = {id(parameter) for parameter in self.model.module.get_classifier().parameters()}
        rates = {False: training.learning_rate, True: training.head_learning_rate or training.learning_rate}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.model.activate(keys):
            groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
        # One kernel updates all tensors on a GPU. On a CPU it would round otherwise than the loop has done so far.
        fused = True if self.device.type == "cuda" else None
        return torch.optim.AdamW(
            [
                {"params": members, "lr": rates[in_head], "weight_decay": training.weight_decay * decays}
                for (in_head, decays), members in groups.items()
            ],
            fused=fused,
        )


def _compile(forward: Forward, step: Callable[[Forward], torch.Tensor], module: nn.Module) -> Forward:
    """`forward` compiled, tried in a `step` that uses it; as it is if that fails.

    Args:
        forward: a part of `module`.
        step: from what stands for `forward` to a tensor.
        module: whose gradients are removed.
    """
    compiled = torch.compile(forward)
    try:
        torch.autograd.backward(step(compiled).sum())
    except Exception as error:  # the compilers below torch raise what they like
        _logger.warning("the model cannot be compiled, so that it trains as it is: %s", " ".join(str(error).split()))
        compiled = forward
    for parameter in module.parameters():
        parameter.grad = None
    return compiled


def pick_device(name: str, source: str = "site.json: field 'device'") -> torch.device:
    """The torch device `name`.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``, or ``auto``, which takes a GPU if there is one.
        source: the field or option that it was read from, for the error.

    Raises:
        UserError: if it is a GPU that this process does not see, or ``auto`` where the environment gives it a GPU that
            is not there: a CPU would train in its place, unnoticed.
    """
    if name == "cpu":
        return torch.device("cpu")
    found, given = torch.cuda.device_count() if torch.cuda.is_available() else 0, gpu.given()
    if name == "auto" and not found and not given:
        return torch.device("cpu")
    index = name.partition(":")[2]
    if (number := int(index or 0)) < found:
        return torch.device("cuda", number)
    among = f" with {gpu.VISIBLE}={given}" if given else ""
    if not found and given:
        right = f"torch finds no GPU{among}; GPUs of this machine there, or 'cpu' for the device, would be right"
    elif not found:
        right = "torch finds no GPU here; 'auto' or 'cpu' would be right"
    else:
        right = f"the last GPU that torch finds here{among} is 'cuda:{found - 1}'"
    raise UserError(f"{source} is '{name}', but {right}.", "device")


def site_device(site: Site) -> torch.device:
    """The device of a site, of which this process takes no more memory than the site's share. Raises UserError."""
    device = pick_device(site.device)
    gpu.limit(device, site.gpu_memory_share)
    return device
