"""What a model takes, in which precision it computes, and over which flips of an image its logits are averaged."""

from collections.abc import Callable

import torch
from torch import nn

from pt_peft.experiment.preprocessing import Preprocessing
from pt_peft.experiment.sections import Backbone, Precision, TestTimeFlips

FLIPS: dict[TestTimeFlips, tuple[tuple[int, ...], ...]] = {
    "horizontal": ((), (3,)),
    "all": ((), (3,), (2,), (2, 3)),
}
"""For each ``data.test_time_flips`` the axes of (B,3,S,S) that each of its views reverses."""


class Normalisation(nn.Module):
    """x → (x - mean) / std, channel by channel: images float32 (B,3,S,S) in [0,1] to the backbone's input."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, source: Backbone | Preprocessing):
        """Takes mean and standard deviation from `source`."""
        super().__init__()
        self.register_buffer("mean", torch.tensor(source.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(source.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalises `images`, which are on the device of this module."""
        return (images - self.mean) / self.std


def over_flips(
    logits_of: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, flips: TestTimeFlips
) -> torch.Tensor:
    """The mean logits of each image's views, as evaluation has them.

    Args:
        logits_of: from images float32 (B,3,S,S) to logits float32 (B,K).
        images: float32 (B,3,S,S); of ``none`` anything that `logits_of` takes.
        flips: ``data.test_time_flips``.
    """
    if flips == "none":
        return logits_of(images)
    return torch.stack([logits_of(images.flip(axes)) for axes in FLIPS[flips]]).mean(dim=0)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a model on `device` computes with `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
