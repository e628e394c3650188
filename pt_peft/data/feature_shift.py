"""Feature shift: every image of a site looks as if the site's own device had taken it.

Importing this module imports torchvision (seconds): import it where images are decoded.
"""

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional

from pt_peft.experiment.sections import FeatureShift
from pt_peft.seeds import derive_seed

HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical densities of haematoxylin, eosin and DAB in red, green and blue.

Ruifrok and Johnston 2001, Anal. Quant. Cytol. Histol. 23:291."""


class SiteShift:
    """The change of one site's images, drawn once from the experiment's seed and the site's name.

    With u from U(-1, 1) and the strengths of `FeatureShift`: gamma 2^(intensity u); a gain of 2^(colour u / 2) for each
    channel; a factor of 2^(stain u / 2) for the density of each stain (after Tellez et al. 2018, arXiv:1808.05896); a
    Gaussian blur of sigma = blur |u| S / 64 pixels for a side of S.
    """

    def __init__(self, settings: FeatureShift, seed: int, site: str):
        def uniform(*what: str | int) -> float:
            return 2 * derive_seed(seed, "feature shift", site, *what) / 2**32 - 1

        self.gamma = 2 ** (settings.intensity * uniform("intensity"))
        self.gains = [2 ** (settings.colour * uniform("colour", channel) / 2) for channel in range(3)]
        self.stains = [2 ** (settings.stain * uniform("stain", stain) / 2) for stain in range(3)]
        self.sigma = settings.blur * abs(uniform("blur")) / 64
        """Standard deviation of the blur, as a fraction of the side."""

    def __call__(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Maps uint8 (3,S,S) to the same."""
        x = torch.tensor(image).float() / 255
        if any(scale != 1 for scale in self.stains):
            x = _restained(x, torch.tensor(self.stains))
        x = (x**self.gamma * torch.tensor(self.gains).view(3, 1, 1)).clamp(0, 1)
        sigma = self.sigma * x.shape[-1]
        if sigma > 0:
            size = 2 * min(round(4 * sigma), x.shape[-1] // 2 - 1) + 1
            x = functional.gaussian_blur(x, [size, size], [sigma, sigma])
        return (x * 255).round().to(torch.uint8).numpy()


def _restained(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Scales the density of each stain, by Beer-Lambert: densities are negative logarithms of transmission and add up.

    Args:
        x: float32 (3,S,S) in [0,1].
        scales: float32 (3,), the factor of each stain.
    """
    vectors = torch.nn.functional.normalize(torch.tensor(HED), dim=1)
    densities = -torch.log(x.clamp_min(1 / 255))
    # Rows: from the density of a channel to the densities of all channels.
    change = torch.inverse(vectors) @ (scales[:, None] * vectors)
    return torch.exp(-torch.einsum("chw,cd->dhw", densities, change)).clamp(0, 1)
