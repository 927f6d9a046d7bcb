"""The one error that a person is meant to read. Change here to: nothing; raise it where an input is wrong."""


class InputError(Exception):
    """An input that cannot be used: the message says what was expected, what came, and what to do."""
