"""What the process's exit code says to the job script; a contract, see the README."""

DONE = 0
FAILED = 1
"""A run that could not go on, a bug, a killed process."""
BAD_INPUT = 2
"""The user can mend it: a config key, a file, a row, an option."""
REQUEUE = 85
"""Stopped by a signal or a wall-clock limit with its state saved: start it again with --resume auto."""
GAVE_UP = 86
"""The run ended itself with its state saved, and would end the same way again: nothing for a queue to repeat."""
INTERRUPTED = 130
"""Ctrl-C."""
