"""The errors that speak to the user, the one that ends a step early, and the exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process's exit code says to the job script; a contract, see the README."""

    DONE = 0
    FAILED = 1
    """A run that could not go on, a bug, a killed process."""
    BAD_INPUT = 2
    """The user can mend it: a config key, a file, a row, an option."""
    REQUEUE = 85
    """Stopped by a signal or a wall-clock limit with its state saved: start it again with --resume auto."""
    GAVE_UP = 86
    """The run ended itself with what it had learned saved, and would end the same way again: nothing for a queue to
    repeat."""
    INTERRUPTED = 130
    """Ctrl-C."""


class InputError(Exception):
    """Bad input: a config key, a file, a row, a model folder.

    The message is one line that names what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


class StopRequested(Exception):
    """All ranks agreed, at a point where a step can be dropped, to stop: a signal or the wall-clock limit."""


class NotFinite(Exception):
    """The policy's distribution was no numbers while it generated; known to all ranks. The step is dropped."""


class EngineDied(Exception):
    """An engine's process died, hangs or failed; the message says how. Its replica starts it again."""


class RunError(Exception):
    """The run cannot go on (a starved batch, a dead engine, a failed sync); one line, no traceback.

    Between steps, where all ranks meet it, it becomes a `RunEnded`; anywhere else the exit code is 1.
    """


class PeerLost(RunError):
    """Another rank does not answer: nothing can be saved together any more."""


class Diverged(RunError):
    """The weights hold no numbers: there is nothing worth saving."""


class RunEnded(RunError):
    """The run ended itself, on all ranks, with the last finished step saved; exit code 86 (see ``run.ending``)."""
