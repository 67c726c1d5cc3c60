"""The one error that speaks to the user."""


class InputError(Exception):
    """Bad input: a config key, a file, a row, a model folder.

    The message is one line that names what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


class RunError(Exception):
    """The run cannot go on (a starved batch, a dead engine, a failed sync); exit code 1, one line, no traceback."""
