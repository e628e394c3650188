r"""HiRA (Huang et al. 2025, openreview TwJrTz9cRS): the weight times a low-rank matrix, entry by entry.

    ΔW = W ⊙ (B A),    A: (r, d_in),  B: (d_out, r)

B starts at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class HiRa(LinearLayersAndParts):
    """Options of HiRA."""

    rank: int = Field(default=16, ge=1, le=1024)
    """r; may be larger than LoRA's, as the product with W is of high rank."""


register(
    tuner_method(
        name="hira",
        summary="the weight times a low-rank matrix, entry by entry",
        paper="Huang et al. 2025, openreview TwJrTz9cRS",
        config=HiRa,
        tuner=lambda config, paths: peft.HiraConfig(r=config.rank, target_modules=paths),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
