"""How readers report what is wrong with a site's images: a run stops at the first error, the site check collects all.

What is left out for one cause is said in one sentence, with its number and the first names.
"""

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

from pt_peft.errors import UserError

Level = Literal["error", "warning"]
SHOWN = 3
"""Names that a sentence has."""
_logger = logging.getLogger(__name__)


class Report(Protocol):
    """Takes a problem. If it returns, the reader leaves the image out."""

    def __call__(self, kind: str, message: str, level: Level = "error") -> None:
        """Takes one problem.

        Args:
            kind: the sort of problem, in a few words.
            message: the sentence for the user.
            level: ``warning`` if the site can go on.
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
    _logger.warning("%s: an image %s", kind, what)


def stop(kind: str, message: str, level: Level = "error") -> None:
    """Logs a warning. Raises UserError for an error."""
    if level == "error":
        raise UserError(message)
    _logger.warning("%s", message)


def not_taken(names: Sequence[str], of: int, what: str, cause: str) -> str:
    """The sentence on everything that one cause leaves out, without a stop at its end.

    Args:
        names: what is left out, one or more.
        of: the number of all, taken or not.
        what: the plural of what is counted, such as ``files`` or ``rows``.
        cause: why, in a main clause.
    """
    return f"{len(names)} of {of} {what} are not taken: {cause} ({_first(names)})"


def some_of(names: Sequence[str], of: int, what: str) -> str:
    """Counts and names some of what there is, such as ``2 of 9 rows (first: line 3, line 7)``; as `not_taken`."""
    return f"{len(names)} of {of} {what} ({_first(names)})"


def _first(names: Sequence[str]) -> str:
    return f"first: {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"


class Tally:
    """Collects what is not taken, to say each cause once."""

    def __init__(self, where: str, what: str):
        """Starts without any.

        Args:
            where: the table or folder.
            what: see `not_taken`.
        """
        self._where, self._what = where, what
        self._names: dict[tuple[str, str, Level], list[str]] = {}

    def add(self, kind: str, cause: str, name: str, level: Level = "error") -> None:
        """Adds one to those that `cause` leaves out; `kind` and `level` as in `Report`."""
        self._names.setdefault((kind, cause, level), []).append(name)

    def report(self, of: int, report: Report) -> None:
        """Reports every cause, in the order of the first of each.

        Args:
            of: the number of all, taken or not.
            report: takes the sentences.
        """
        for (kind, cause, level), names in self._names.items():
            report(kind, f"{self._where}: {not_taken(names, of, self._what, cause)}.", level)
