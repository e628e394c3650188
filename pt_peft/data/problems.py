"""What readers do with an image that is wrongly listed: the first one stops a run; the site check collects them all."""

from typing import NoReturn, Protocol

from pt_peft.errors import UserError


class Report(Protocol):
    """Takes a problem. If it returns, the reader leaves the image out."""

    def __call__(self, kind: str, message: str) -> None:
        """Args:
        kind: what sort of problem it is, in a word or two; the same for all of a sort.
        message: the sentence for the user.
        """


def stop(kind: str, message: str) -> NoReturn:
    """Raises UserError."""
    raise UserError(message)
