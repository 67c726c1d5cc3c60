"""Whether an attempt that ended goes back into the queue: the one place that decides; job.sh obeys."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from prime_megatron.errors import ExitCode

MAX_FRUITLESS = 3
"""Attempts in a row that end without a newer checkpoint; after these a job is not requeued."""
MAX_FAILURES = 3
"""Attempts in a row that fail, with a newer checkpoint each; after these a job is not requeued."""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended."""

    code: int
    """Of the run, as srun tells it: the highest of all tasks; 128 + n for a task that a signal killed."""
    warned: str
    """The stop signal that the job script was sent, such as "USR1" or "TERM"; empty: none."""
    slurm_ends_it: bool
    """SLURM is ending the job: it was cancelled, preempted, requeued by an admin, or lost a node."""
    ran_out: bool
    """The job has run as long as its time limit."""
    lost_node: bool
    """A node of the job does not answer SLURM."""
    progressed: bool
    """There is a checkpoint that is newer than the attempt's start."""
    fruitless: int
    """Attempts of this job in a row that ended without a newer checkpoint, this one included."""
    failures: int
    """Attempts of this job in a row that failed, this one included."""
    may_requeue: bool
    """The script was not rendered with --no-requeue."""


@dataclass(frozen=True)
class Verdict:
    """What the job script does."""

    requeue: bool
    code: int
    """The job script's own exit code."""
    text: str
    """One line for the job's log."""


def decide(ended: Ended) -> Verdict:
    """The requeue policy.

    ====================================  =============================================================
    the run ended with                    then
    ====================================  =============================================================
    0                                     done
    85 (or a signal, after the warning)   requeued; not when SLURM is ending the job; not after
                                          `MAX_FRUITLESS` attempts without a newer checkpoint
    86                                    never requeued; with --no-requeue the script ends 0: a chain stops
    2                                     never requeued
    anything else                         requeued where a newer checkpoint exists or a node does not answer, at
                                          most `MAX_FAILURES` times in a row
    ====================================  =============================================================
    """
    if ended.code == ExitCode.DONE:
        return Verdict(False, 0, "done")
    if ended.code == ExitCode.GAVE_UP:
        text = "the run ended itself with its state saved; it would end the same way again, so it is not requeued"
        return Verdict(False, ended.code if ended.may_requeue else 0, text)
    if ended.code == ExitCode.BAD_INPUT:
        return Verdict(False, ended.code, "error: the input is bad: mend what the error says and submit again")
    stopped = ended.code == ExitCode.REQUEUE or (ended.warned != "" and _killed_by_stop_signal(ended.code))
    code = ExitCode.REQUEUE if stopped else ended.code
    said = "stopped with its state saved" if ended.progressed else "stopped; nothing newer had to be saved"
    if not stopped:
        said = f"error: the run ended with exit code {code}"
    if ended.slurm_ends_it and not ended.ran_out:
        return Verdict(False, code, f"{said}; SLURM ends the job (a cancel), or requeues it itself")
    if not stopped and not ended.progressed and not ended.lost_node:
        return Verdict(False, code, f"{said}, without a checkpoint newer than its start: not requeued")
    if not stopped and ended.failures >= MAX_FAILURES:
        return Verdict(False, code, f"{said}, as {ended.failures} attempts in a row did: not requeued")
    if not ended.may_requeue:
        return Verdict(False, code, f"{said}; the next job of the chain continues")
    if ended.fruitless >= MAX_FRUITLESS:
        return Verdict(
            False,
            ExitCode.FAILED,
            f"error: {ended.fruitless} attempts in a row ended without a newer checkpoint, so the job is not requeued: "
            "give it more --time, or see what keeps a step from ending",
        )
    return Verdict(True, code, f"{said}; back into the queue")


def _killed_by_stop_signal(code: int) -> bool:
    """A signal that came before Python listened ended a task: nothing was lost."""
    return code - 128 in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
