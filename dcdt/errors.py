"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake the user can mend: one or two lines that name the value, the limit and the remedy.

    The commands print it without a traceback and exit with code 2.
    """


class MissingField(UserError):
    """No video has a field that is asked for: a mistake in a single run, not applicable in a sweep."""


class NotApplicable(Exception):
    """The collection lacks what the model needs (no interactions, no text): a row in the table, not a failure."""
