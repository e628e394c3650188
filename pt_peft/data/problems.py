"""How readers report images that are wrongly listed: a run stops at the first, the site check collects all of them."""

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


def stop(kind: str, message: str) -> NoReturn:
    """Raises UserError."""
    raise UserError(message)
