"""How readers report images that are wrongly listed: a run stops at the first, the site check collects all of them."""

import logging
from typing import NoReturn, Protocol

from pt_peft.errors import UserError


class Report(Protocol):
    """Takes a problem. If it returns, the reader leaves the image out."""

    def __call__(self, kind: str, message: str) -> None:
        """Takes one problem.

        Args:
            kind: the sort of problem, in a few words.
            message: the sentence for the user.
        """


class Remark(Protocol):
    """Takes what is odd about an image that is read nevertheless."""

    def __call__(self, kind: str, what: str) -> None:
        """Takes one remark.

        Args:
            kind: the sort of oddity, in a few words that name no value.
            what: what the image has and what becomes of it, to be read after its name: "has a window …".
        """


def log_remark(kind: str, what: str) -> None:
    """Logs a remark on an image whose name is not known."""
    logging.getLogger(__name__).warning("%s: an image %s", kind, what)


def stop(kind: str, message: str) -> NoReturn:
    """Raises UserError."""
    raise UserError(message)
