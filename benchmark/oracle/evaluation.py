"""Predictions of a finished model on every site's images, and metrics of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pt_peft.data.items import SplitName
from pt_peft.data.site_data import SiteData, ImageSplit
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.experiment.sections import Task
from pt_peft.federation.local_round import at_site_rank, starting_model
from pt_peft.training.metrics import evaluate_predictions
from pt_peft.training.trainer import LocalTrainer


@dataclass(frozen=True)
class Predictions:
    """Of all sites that have images in a split, one after the other in the order of their names."""

    sites: list[str]
    logits: np.ndarray
    """Floating point (N,K)."""
    labels: np.ndarray
    """int64 (N,), or uint8 (N,K) for ``multilabel``."""
    site: np.ndarray
    """uint16 (N,), positions in `sites`."""

    def metrics(self, task: Task) -> dict:
        """``pooled``, of all images together, and those of each of the ``sites``, see `evaluate_predictions`."""
        of_sites = {name: self.site == index for index, name in enumerate(self.sites)}
        return {
            "pooled": self._metrics(slice(None), task),
            "sites": {name: self._metrics(chosen, task) for name, chosen in of_sites.items()},
        }

    def _metrics(self, chosen: slice | np.ndarray, task: Task) -> dict:
        return evaluate_predictions(torch.from_numpy(self.logits[chosen]), torch.from_numpy(self.labels[chosen]), task)


def predict(
    trainer: LocalTrainer,
    tensors: Tensors,
    kept: Mapping[str, Tensors],
    sites: Mapping[str, SiteData],
    split: SplitName,
) -> Predictions:
    """The predictions of the model with the server's `tensors` as each site has it: at its rank, and with what it has `kept`.

    Raises:
        UserError: if no site has images in `split`.
    """

    def logits(name: str) -> np.ndarray:
        model = starting_model(trainer, at_site_rank(trainer, name, tensors), kept.get(name, {}))
        return trainer.predict(model, getattr(sites[name], split))[0].numpy()

    return joined({name: getattr(data, split) for name, data in sites.items()}, logits)


def joined(splits: Mapping[str, ImageSplit], logits: Callable[[str], np.ndarray]) -> Predictions:
    """The `logits` of every site in `splits` that has images. Raises UserError if none has."""
    names = sorted(name for name, split in splits.items() if len(split))
    if not names:
        raise UserError("no site has images to evaluate on.")
    labels = [splits[name].labels for name in names]
    return Predictions(
        names,
        np.concatenate([logits(name) for name in names]),
        np.concatenate(labels),
        np.repeat(np.arange(len(names), dtype=np.uint16), [len(one) for one in labels]),
    )
