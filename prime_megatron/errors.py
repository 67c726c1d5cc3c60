"""The errors that speak to the user, and the one that ends a step early."""


class InputError(Exception):
    """Bad input: a config key, a file, a row, a model folder.

    The message is one line that names what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


class StopRequested(Exception):
    """All ranks agreed, at a point where a step can be dropped, to stop: a signal or the wall-clock limit."""


class RunError(Exception):
    """The run cannot go on (a starved batch, a dead engine, a failed sync); exit code 1, one line, no traceback."""
