"""The attacker's own model of the experiment, and the pieces of evidence that it has."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmark.reconstruction.optimisation import START_STD, Budget, search
from benchmark.reconstruction.seen import Seen
from pt_peft.exchange.tensors import Tensors
from pt_peft.model.adapted_model import AdaptedModel
from pt_peft.model.backbone import head_name
from pt_peft.model.model_input import Normalisation
from pt_peft.model.vit import ViT
from pt_peft.training.trainer import LocalTrainer

Floats = npt.NDArray[np.floating]
MOST_IMAGES = 8
"""Most images that an attack looks for at once: more cost more, and matching finds them worse."""


@dataclass(frozen=True)
class Evidence:
    """Gradients that the attacker takes what it saw for."""

    kind: str
    """``control variate`` or ``update``."""
    gradients: Tensors
    """By canonical key: those of the mean of the round's steps, or the negative update."""
    exact: bool
    """Whether they are gradients but for rounding and privacy. An update of AdamW has lost their magnitudes: its first
    step is -rate · g / (|g| + 1e-8)."""


def evidence(seen: Seen) -> list[Evidence]:
    """The pieces of evidence in what was seen, the better one first."""
    update = Evidence("update", {key: -value for key, value in seen.change.items()}, exact=False)
    return [*([Evidence("control variate", seen.control, exact=True)] if seen.control else []), update]


class Attacker:
    """Builds nothing that it does not know: the experiment names the backbone's file and draws what it lacks.

    Attributes:
        seen: what was seen.
        model: the experiment's model in eval mode, at the tensors that the round started from or halfway.
        budget: for each search.
        images: how many images to look for.
        iterations: of the last search; 0 before.
    """

    def __init__(self, trainer: LocalTrainer, seen: Seen, budget: Budget, seed: int):
        """Loads the tensors.

        Args:
            trainer: made from the experiment and the backbone's file alone, as everybody can.
            seen: what was seen.
            budget: for each search.
            seed: of the starts of searches.
        """
        self.seen = seen
        self.budget = budget
        self.iterations = 0
        self.images = min(seen.num_samples or MOST_IMAGES, MOST_IMAGES)
        self.model: AdaptedModel = trainer.model
        self.model.load({**trainer.initial, **seen.halfway})
        self.model.module.eval()
        self._seed = seed
        self._normalise = Normalisation(seen.experiment.backbone).to(trainer.device)

    @property
    def module(self) -> ViT:
        """The timm model."""
        return self.model.module

    @property
    def side(self) -> int:
        """Side of an image in pixels."""
        return self.seen.experiment.backbone.image_size

    @property
    def head(self) -> str:
        """Path of the classifier."""
        return head_name(self.module)

    @property
    def patches(self) -> nn.Conv2d | None:
        """The patch embedding, if it is a convolution whose patches do not overlap."""
        layer = getattr(self.module.patch_embed, "proj", None)
        return layer if isinstance(layer, nn.Conv2d) and layer.stride == layer.kernel_size else None

    def assembled(self, patches: Floats) -> Floats:
        """Normalised patches (N, 3·p·p) in the order of the tokens as images (1,3,S,S); a single one is repeated."""
        layer = self.patches
        assert layer is not None
        height, width = layer.kernel_size
        rows, columns = self.side // height, self.side // width
        grid = np.broadcast_to(patches, (rows * columns, patches.shape[1])).reshape(rows, columns, 3, height, width)
        return grid.transpose(2, 0, 3, 1, 4).reshape(1, 3, self.side, self.side)

    def pixels(self, normalised: torch.Tensor | Floats) -> Floats:
        """Normalised images (M,3,S,S) as float64 in [0,1]."""
        mean, std = (value.cpu().double().numpy() for value in (self._normalise.mean, self._normalise.std))
        return np.clip(np.asarray(normalised, np.float64) * std + mean, 0, 1)

    def standardised(self, images: Floats) -> Floats:
        """Images of unknown brightness and contrast (M,3,S,S), with those that normalised pixels have on average."""
        flat = images.reshape(len(images), -1)
        spread = flat.std(axis=1, keepdims=True)
        return ((flat - flat.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)).reshape(images.shape)

    def search(self, loss_of: Callable[[torch.Tensor], torch.Tensor], count: int) -> Floats:
        """Looks for `count` images, as `search` does, from grey and noise. Returns float64 (count,3,S,S) in [0,1]."""
        generator = torch.Generator().manual_seed(self._seed)
        start = START_STD * torch.randn(count, 3, self.side, self.side, generator=generator)
        device = self._normalise.mean.device
        black, white = (self._normalise(torch.full((1, 3, 1, 1), value, device=device)) for value in (0.0, 1.0))
        found, self.iterations = search(loss_of, start.to(device), (black, white), self.budget)
        return self.pixels(found.cpu())
