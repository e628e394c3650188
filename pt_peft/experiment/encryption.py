"""Aggregation of what the server cannot read: the section ``encryption`` of `experiment.json`. Imports no torch and no tenseal.

CKKS (Cheon, Kim, Kim and Song 2017, ePrint 2016/421) encrypts vectors of real numbers; who has no key can add them up, and no
more is needed for a weighted mean. The sites share one secret key, which the server does not have.
"""

from typing import Literal

from pydantic import Field

from pt_peft.schema import Strict


class Encryption(Strict):
    """With this section sites encrypt what they send, and the server adds without reading."""

    scheme: Literal["ckks"]
    """With the parameters of FLARE's ``HEBuilder``: polynomials of degree 8192, primes of 60, 40 and 40 bits, a scale of 2^40."""
    largest_value: float = Field(default=1e4, gt=0, le=1e6)
    """The largest magnitude that a value of the adapter may have. A sum that decrypts to more is nonsense, which only the sites
    can see: they refuse to train on it."""


def weight_of(weighting: str, num_samples: int) -> int:
    """What a site multiplies its values by, and by what sum the sites divide: its training images, or 1 if ``uniform``."""
    return num_samples if weighting == "samples" else 1
