"""A trained model as a function from images to logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pt_peft.experiment.sections import ModelSpec
from pt_peft.model.model_input import Normalisation

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Maps images float32 (B,3,S,S) in [0,1] to logits float32 (B,K), both on the CPU."""


@dataclass(frozen=True)
class Classifier:
    """A trained model, from any of the formats."""

    spec: ModelSpec
    """Classes, image size and normalisation."""
    logits: Logits
    """The model."""


def with_normalisation(module: nn.Module, spec: ModelSpec) -> nn.Module:
    """A model of images in [0, 1], in eval mode.

    Args:
        module: a model of normalised images.
        spec: has the normalisation.
    """
    return nn.Sequential(Normalisation(spec.backbone), module).eval()


def torch_classifier(module: nn.Module, spec: ModelSpec, device: torch.device) -> Classifier:
    """The classifier of a torch model.

    Args:
        module: a model of normalised images.
        spec: its description.
        device: where it computes.
    """
    whole = with_normalisation(module, spec).to(device)

    @torch.inference_mode()
    def logits(images: torch.Tensor) -> torch.Tensor:
        return whole(images.to(device)).float().cpu()

    return Classifier(spec, logits)
