"""Decoded images in tests."""

from collections.abc import Iterable

import numpy as np

from pt_peft.errors import UserError


def good(decoded: Iterable[np.ndarray | UserError]) -> list[np.ndarray]:
    """All decoded images; fails if one could not be read."""
    images = []
    for one in decoded:
        assert isinstance(one, np.ndarray), one
        images.append(one)
    return images
