r"""RoAd (Liao and Monz 2024, arXiv:2409.00119): pairs of outputs are rotated and scaled.

    (y_1, y_2) = α ((cos θ, -sin θ), (sin θ, cos θ)) (z_1, z_2),    z = W x + b,    α, θ: (d_out / 2) for variant 1

α starts at one, θ at zero.
"""

from typing import Literal

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class Road(LinearLayersAndParts):
    """Options of RoAd."""

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    """One, two or four numbers for each pair's α and θ."""
    group_size: int = Field(default=16, ge=2, le=4096, multiple_of=2)
    """Outputs whose halves are paired; must divide the layers' output width."""


register(
    tuner_method(
        name="road",
        summary="rotation and scale of pairs of outputs",
        paper="Liao and Monz 2024, arXiv:2409.00119",
        config=Road,
        tuner=lambda config, paths: peft.RoadConfig(
            variant=config.variant, group_size=config.group_size, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
