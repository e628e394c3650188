"""A trained model as the formats see it: images to logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pt_peft.experiment.sections import ModelSpec

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Images float32 (B,3,S,S) in [0,1] to logits float32 (B,K), both on the CPU."""


@dataclass(frozen=True)
class Classifier:
    """A model of one of the formats."""

    spec: ModelSpec
    """Classes, image size and normalisation."""
    logits: Logits


class Normalised(torch.nn.Module):
    """A model of normalised images as one of images in [0, 1]."""

    def __init__(self, module: torch.nn.Module, spec: ModelSpec):
        super().__init__()
        self.module = module.eval()
        self.register_buffer("mean", torch.tensor(spec.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.backbone.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.module((images - self.mean) / self.std)


def torch_classifier(module: torch.nn.Module, spec: ModelSpec, device: torch.device) -> Classifier:
    """`module`, a model of normalised images, on `device`."""
    whole = Normalised(module, spec).to(device)

    @torch.inference_mode()
    def logits(images: torch.Tensor) -> torch.Tensor:
        return whole(images.to(device)).float().cpu()

    return Classifier(spec, logits)
