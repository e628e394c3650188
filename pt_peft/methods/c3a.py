r"""C³A (Chen et al. 2024, arXiv:2407.19342): the update as a block-circular convolution.

    ΔW = blocks C(w_ij) of side s,    C(w) the circulant matrix of w: (s),  w: (d_out / s, d_in / s, s)

The kernels start at zero.
"""

import peft
from pydantic import Field

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class C3a(LinearLayersAndParts):
    """Options of C³A."""

    block_size: int = Field(default=16, ge=1, le=4096)
    """s; must divide the layers' widths."""


register(
    tuner_method(
        name="c3a",
        summary="block-circular convolution",
        paper="Chen et al. 2024, arXiv:2407.19342",
        config=C3a,
        tuner=lambda config, paths: peft.C3AConfig(
            block_size=config.block_size, init_weights=True, target_modules=paths
        ),
        identity_at_start=True,
        learning_rate=3e-2,
    )
)
