"""The errors that a user sees, and what of them may leave a site."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Self

from pydantic import JsonValue

from pt_peft import reasons
from pt_peft.reasons import Reason


def one_line(text: str) -> str:
    """`text`, which may be anybody's, with a blank for each character that is not printable."""
    return "".join(character if character.isprintable() else " " for character in text)


class ReasonedError(Exception):
    """An error whose message stays where it happens, while its `reason` may leave the site.

    Its class makes the same error from ``args``, which are JSON, in another process.
    """

    def __init__(self, message: str, *arguments: JsonValue, reason: Reason):
        """Keeps both.

        Args:
            message: what the user at this place reads.
            arguments: what its class is made from beside it.
            reason: what others are told.
        """
        super().__init__(message, *arguments)
        self.message = message
        self.reason = reason

    def __str__(self) -> str:
        return self.message

    def told_as(self, reason: Reason) -> Self:
        """The same error with a reason of the caller's. A field that it names stays named."""
        field = getattr(self.reason, "field", None)
        keeps = field and "field" in type(reason).model_fields and getattr(reason, "field", None) is None
        self.reason = reason.model_copy(update={"field": field}) if keeps else reason
        return self


class UserError(ReasonedError):
    """A mistake in what the user gave.

    Its message is one sentence that names the field or file, the value seen and what would be right. Commands print it
    without a traceback and exit non-zero; federated components stop the job with it.
    """

    def __init__(self, message: str, field: str | None = None):
        """Keeps the message.

        Args:
            message: the sentence.
            field: dotted name of the schema's field that is wrong, if it is one.
        """
        super().__init__(message, field, reason=reasons.Failed(field=field and field[:200]))


class BackboneMismatch(UserError):
    """The backbone's weights are not those that the experiment pins, so that no result of the site can be used."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message, field)
        self.reason = reasons.OtherBackbone()


class OutsideLimits(UserError):
    """The limits in a site's `site.json` do not allow what the experiment asks of the site."""

    def __init__(self, field: str, asked: str, allowed: str):
        """Makes the message.

        Of the words of `asked`, numbers and names of the lead's leave the site; of `allowed`, numbers alone: what a
        site lists stays in its log.

        Args:
            field: name of the field of ``limits``.
            asked: what the job asks for.
            allowed: what the site allows.
        """
        super().__init__(f"the site refuses the job by field '{field}' of its limits: it asks for {asked}; {allowed}")
        self.args = (field, asked, allowed)
        self.field, self.asked, self.allowed = field, asked, allowed
        numbers = tuple(one for one in reasons.words(allowed) if isinstance(one, float))
        self.reason = reasons.OutsideLimits(field=field, asked=reasons.words(asked), allowed=numbers)


@contextmanager
def told_as(reason: Reason) -> Generator[None]:
    """Gives each UserError of the block that has no closer reason `reason`."""
    try:
        yield
    except UserError as error:
        if isinstance(error.reason, reasons.Failed):
            error.told_as(reason)
        raise


def unlike_expected(error: Exception) -> str:
    """What was wrong with a file's content for code that took its form for granted, to stand in a sentence."""
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
