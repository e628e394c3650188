"""The section ``encryption`` of `experiment.json`: the server aggregates what it cannot read. Imports no tenseal.

CKKS (Cheon, Kim, Kim and Song 2017, ePrint 2016/421) encrypts vectors of real numbers, which can be added without a
key; a weighted mean needs no more. The sites share one secret key, which the server does not have.
"""

from typing import Literal

from pydantic import Field

from pt_peft.schema import Strict


class Encryption(Strict):
    """Sites encrypt what they send, and the server adds it up without reading it."""

    scheme: Literal["ckks"]
    """CKKS with the parameters of FLARE's ``HEBuilder``: degree 8192, primes of 60, 40 and 40 bits, scale 2^40."""
    largest_value: float = Field(default=1e4, gt=0, le=1e6)
    """Largest magnitude of a value of the adapter. Sites refuse to train on a sum that decrypts to more: it is damaged,
    and the server cannot see that."""
