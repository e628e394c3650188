"""The errors a user is meant to see."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that names the field or file, the value seen and what would be
    right. Commands print it without a traceback and exit non-zero; federated components stop the job with it.
    """


class BackboneMismatch(UserError):
    """Backbone weights other than those the experiment pins: no site's result can be of use."""


class OutsideLimits(UserError):
    """A site's `site.json` does not allow what the experiment asks of it."""
