"""The options of a pre-training."""

from dataclasses import dataclass
from typing import Literal

from pt_peft.errors import UserError

MAE_RATE, MAE_BATCH = 1.5e-4, 256
"""Step size of He et al. 2022 for a batch of that many images; it is proportional to the batch."""
SUPERVISED_RATE = 5e-5
"""A usual step size for fine-tuning a pre-trained ViT as a whole."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of ``pt-peft pretrain``.

    Attributes:
        objective: ``supervised`` (cross-entropy, with a head that is thrown away) or ``mae`` (masked autoencoder).
        epochs: passes over the training images, 1 to 100,000.
        batch_size: images a step, 1 to 65,536.
        learning_rate: peak step size of AdamW, up to 10.
        mask_ratio: share of the patches that the autoencoder does not see, between 0 and 1.
    """

    objective: Literal["supervised", "mae"]
    epochs: int
    batch_size: int
    learning_rate: float
    mask_ratio: float = 0.75

    def __post_init__(self) -> None:
        for name, right, words in (
            ("epochs", 1 <= self.epochs <= 100_000, "1 to 100000"),
            ("batch_size", 1 <= self.batch_size <= 65_536, "1 to 65536"),
            ("learning_rate", 0 < self.learning_rate <= 10, "more than 0 and at most 10"),
            ("mask_ratio", 0 < self.mask_ratio < 1, "between 0 and 1"),
        ):
            if not right:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; {words} would be right.")


def default_rate(objective: str, batch_size: int) -> float:
    """The step size if none is given.

    Args:
        objective: as in `Recipe`.
        batch_size: images a step.
    """
    return SUPERVISED_RATE if objective == "supervised" else MAE_RATE * batch_size / MAE_BATCH
