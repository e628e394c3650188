r"""FourierFT (Gao et al. 2024, arXiv:2405.03003): the update's sparse spectrum is learned.

    ΔW = s Re(F⁻¹(E)),    E: (d_out, d_in), zero but at n random places, the same in every layer

The places are drawn from ``locations_seed`` by every site. The spectrum starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class FourierFt(LinearLayersAndParts):
    """Options of FourierFT."""

    frequencies: int = Field(default=256, ge=1, le=10**7)
    """n, numbers a layer."""
    scale: float = Field(default=150.0, gt=0, le=10**5)
    """s."""
    locations_seed: int = Field(default=777, ge=0, lt=2**31)
    """Draws the places."""


register(
    tuner_method(
        name="fourierft",
        summary="sparse spectrum of the update",
        paper="Gao et al. 2024, arXiv:2405.03003",
        config=FourierFt,
        tuner=lambda config, paths: peft.FourierFTConfig(
            n_frequency=config.frequencies,
            scaling=config.scale,
            random_loc_seed=config.locations_seed,
            init_weights=True,
            target_modules=paths,
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
