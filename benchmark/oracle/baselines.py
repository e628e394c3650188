"""Baselines of a federation: all images in one place, each site alone, and the majority class."""

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn import functional

from benchmark.oracle.evaluation import Predictions, joined
from pt_peft.data.items import NOT_KNOWN
from pt_peft.data.site_data import ImageSplit, SiteData
from pt_peft.experiment.sections import Data

BASELINES = ("pooled", "local")
"""The trained ones: one model on all images, and one at each site."""


def pooled(sites: Mapping[str, SiteData]) -> SiteData:
    """Joins all sites' images to those of one site."""
    return SiteData(
        *(_together([getattr(data, split) for data in sites.values()]) for split in ("train", "val", "test"))
    )


def _together(splits: list[ImageSplit]) -> ImageSplit:
    return ImageSplit(
        np.concatenate([split.images for split in splits]), np.concatenate([split.labels for split in splits])
    )


def majority(data: Data, sites: Mapping[str, SiteData]) -> Predictions:
    """Predicts the majority class, or each label's majority answer, for every test image.

    The probabilities are the class frequencies of all training images; labels that are not known do not count.

    Raises:
        UserError: if there are no test images.
    """
    labels = torch.from_numpy(pooled(sites).train.labels)
    if data.task == "multilabel":
        known = (labels != NOT_KNOWN).sum(dim=0).clamp(min=1)
        logits = ((labels == 1).sum(dim=0) / known).double().logit(eps=1e-9)
    else:
        logits = functional.one_hot(labels, len(data.classes)).double().mean(dim=0).clamp(min=1e-9).log()
    tests = {name: one.test for name, one in sites.items()}
    return joined(tests, lambda name: logits.expand(len(tests[name]), -1).numpy())
