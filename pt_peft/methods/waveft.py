r"""WaveFT (Bilican et al. 2025, arXiv:2505.12532): the update's sparse wavelet coefficients are learned.

    ΔW = s IDWT(E),    E: (d_out, d_in), zero but at n random places

The places are drawn from ``locations_seed`` by every site. The coefficients start at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class WaveFt(LinearLayersAndParts):
    """Options of WaveFT."""

    coefficients: int = Field(default=256, ge=1, le=10**7)
    """n, numbers a layer."""
    scale: float = Field(default=25.0, gt=0, le=10**5)
    """s."""
    locations_seed: int = Field(default=777, ge=0, lt=2**31)
    """Draws the places."""


register(
    tuner_method(
        name="waveft",
        summary="sparse wavelet coefficients of the update",
        paper="Bilican et al. 2025, arXiv:2505.12532",
        config=WaveFt,
        tuner=lambda config, paths: peft.WaveFTConfig(
            n_frequency=config.coefficients,
            scaling=config.scale,
            random_loc_seed=config.locations_seed,
            target_modules=paths,
        ),
        identity_at_start=True,
        learning_rate=3e-3,
    )
)
