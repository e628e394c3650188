"""A console that a person can follow: the progress lines and everybody's warnings. Log files keep everything."""

import logging

console = logging.getLogger("pt_peft.console")
"""What a person should read while a job runs."""


def quiet_console() -> None:
    """Hides from this process's console handlers what is neither ours nor a warning."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name == console.name)
