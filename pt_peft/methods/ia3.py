r"""(IA)³ (Liu et al. 2022, arXiv:2205.05638): learned scales of chosen activations.

    y = l ⊙ (W x + b),    l: (d_out);  for ``fc2`` the input is scaled, y = W (l ⊙ x) + b,  l: (d_in)

l starts at one.
"""

import peft

from pt_peft.model.hf_peft import LinearLayersAndParts, tuner_method
from pt_peft.model.method import register


class Ia3(LinearLayersAndParts):
    """Takes no further options."""


register(
    tuner_method(
        name="ia3",
        summary="learned scales of activations",
        paper="Liu et al. 2022, arXiv:2205.05638",
        config=Ia3,
        tuner=lambda config, paths: peft.IA3Config(
            target_modules=paths, feedforward_modules=[path for path in paths if path.endswith(".fc2")]
        ),
        identity_at_start=True,
        learning_rate=1e-2,
    )
)
