"""The one error a user is meant to see."""


class UserError(Exception):
    """A mistake in what the user gave: one sentence that names the field or file, the value seen and what would be
    right. Commands print it without a traceback and exit non-zero; federated components stop the job with it."""
