r"""VeRA (Kopiczko et al. 2023, arXiv:2310.11454): random low-rank matrices that all layers share, and learned scales.

    y = W x + b + Λ_b B Λ_d A x,    A: (r, d_in) and B: (d_out, r) frozen,  Λ_d = diag(d): (r),  Λ_b = diag(b): (d_out)

b starts at zero. A and B are drawn from ``projection_seed`` by every site and never travel.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class Vera(LinearLayersAndParts):
    """Options of VeRA."""

    rank: int = Field(default=64, ge=1, le=8192)
    """r."""
    projection_seed: int = Field(default=0, ge=0, lt=2**31)
    """Draws A and B."""


register(
    tuner_method(
        name="vera",
        summary="learned scales of shared random low-rank matrices",
        paper="Kopiczko et al. 2023, arXiv:2310.11454",
        config=Vera,
        tuner=lambda config, paths: peft.VeraConfig(
            r=config.rank, projection_prng_key=config.projection_seed, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
