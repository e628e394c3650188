"""A trained model as a function from images to logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pt_peft import gpu
from pt_peft.experiment.preprocessing import Decoding, Preprocessing
from pt_peft.experiment.prevalence import KnownPrevalence
from pt_peft.experiment.sections import ModelSpec, TestTimeFlips
from pt_peft.export.adapter import Description
from pt_peft.model.model_input import Normalisation, over_flips

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Maps images float32 (B,3,S,S) in [0,1] to logits float32 (B,K), both on the CPU."""


@dataclass(frozen=True)
class Classifier:
    """A trained model, from any of the formats."""

    spec: ModelSpec
    """Its classes and task."""
    decoding: Decoding
    """How files become images."""
    prevalence: KnownPrevalence
    """How frequent the classes were where it learned."""
    logits: Logits
    """The rest: normalisation, model, and flips at test time."""


class FromImages(nn.Module):
    """Images float32 (B,3,S,S) in [0,1] → logits (B,K), as evaluation has them: normalised, averaged over flips."""

    _flips: TestTimeFlips

    def __init__(self, module: nn.Module, preprocessing: Preprocessing):
        """In eval mode; `module` is a model of normalised images."""
        super().__init__()
        self._normalised = nn.Sequential(Normalisation(preprocessing), module)
        self._flips = preprocessing.test_time_flips
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return over_flips(self._normalised, images, self._flips)


def torch_classifier(module: nn.Module, described: Description, device: torch.device) -> Classifier:
    """The classifier of a torch model.

    Args:
        module: a model of normalised images.
        described: its description.
        device: where it computes.
    """
    whole = FromImages(module, described.preprocessing).to(device)

    @torch.inference_mode()
    def logits(images: torch.Tensor) -> torch.Tensor:
        with gpu.exact(device):
            return whole(images.to(device)).float().cpu()

    return Classifier(described.spec, described.preprocessing.decoding, described.prevalence, logits)
