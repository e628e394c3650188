"""torch's number of threads, which is the whole process's."""

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Generator[None]:
    """Computes with `count` threads, or with as many as before, and leaves torch as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
