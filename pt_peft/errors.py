"""The errors that a user sees."""


class UserError(Exception):
    """A mistake in what the user gave.

    Its message is one sentence that names the field or file, the value seen and what would be right. Commands print it
    without a traceback and exit non-zero; federated components stop the job with it.
    """


class BackboneMismatch(UserError):
    """The backbone's weights are not those that the experiment pins, so that no result of the site can be used."""


class OutsideLimits(UserError):
    """The limits in a site's `site.json` do not allow what the experiment asks of the site."""

    def __init__(self, field: str, asked: str, allowed: str):
        """Makes the message.

        Args:
            field: name of the field of ``limits``.
            asked: what the job asks for.
            allowed: what the site allows.
        """
        super().__init__(field, asked, allowed)
        self.field, self.asked, self.allowed = field, asked, allowed

    def __str__(self) -> str:
        return (
            f"the site refuses the job by field '{self.field}' of its limits: it asks for {self.asked}; {self.allowed}"
        )
