"""Predictions of a finished model on every site's images."""

from collections.abc import Callable, Mapping

import numpy as np

from benchmark.oracle.predictions import Predictions, group_numbers
from pt_peft.data.items import SplitName
from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.errors import UserError
from pt_peft.exchange.tensors import Tensors
from pt_peft.federation.local_round import at_site_rank, starting_model
from pt_peft.training.trainer import LocalTrainer


def predict(
    trainer: LocalTrainer,
    tensors: Tensors,
    kept: Mapping[str, Tensors],
    sites: Mapping[str, SiteData],
    split: SplitName,
) -> Predictions:
    """Predictions of the model as each site has it.

    Args:
        trainer: as a site has it.
        tensors: the server's; each site has them at its own rank.
        kept: tensors that stay at a site, by its name.
        sites: data by name.
        split: whose images are predicted.

    Raises:
        UserError: if no site has images in `split`.
    """

    def logits(name: str) -> np.ndarray:
        model = starting_model(trainer, at_site_rank(trainer, name, tensors), kept.get(name, {}))
        return trainer.predict(model, getattr(sites[name], split))[0].numpy()

    experiment = trainer.experiment
    own = f"{experiment.seed} " if experiment.data.source == "lesions" else None
    return joined({name: getattr(data, split) for name, data in sites.items()}, logits, own)


def joined(
    splits: Mapping[str, ImageSplit], logits: Callable[[str], np.ndarray], own: str | None = None
) -> Predictions:
    """Joins the predictions of several sites.

    Args:
        splits: images by site.
        logits: computes those of a site.
        own: what sets the images of sites that draw their own apart from those of another run; None if all sites take
            theirs from one source.

    Raises:
        UserError: if no site has images.
    """
    names = sorted(name for name, split in splits.items() if len(split))
    if not names:
        raise UserError("no site has images to evaluate on.")
    labels = [splits[name].labels for name in names]
    groups = [group if own is None else f"{own}{name} {group}" for name in names for group in splits[name].groups]
    return Predictions(
        names,
        np.concatenate([logits(name) for name in names]),
        np.concatenate(labels),
        np.repeat(np.arange(len(names), dtype=np.uint16), [len(one) for one in labels]),
        group_numbers(groups) if all(splits[name].groups for name in names) else None,
    )
