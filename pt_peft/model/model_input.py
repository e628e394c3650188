"""What a model takes: normalised images, in the precision that it computes in."""

from typing import Literal

import torch
from torch import nn

from pt_peft.experiment.sections import Backbone

Precision = Literal["float32", "bfloat16"]


class Normalisation(nn.Module):
    """x → (x - mean) / std, channel by channel: images float32 (B,3,S,S) in [0,1] to the backbone's input."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: Backbone):
        """Takes mean and standard deviation from `backbone`."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises `images`, which are on the device of this module."""
        return (images - self.mean) / self.std


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a model on `device` computes with `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
