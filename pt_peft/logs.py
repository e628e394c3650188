"""Keeps what a library logs, and users would read as an error, off the console."""

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quiet(name: str, level: int) -> Generator[None]:
    """Logger `name` says nothing below `level` meanwhile."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
