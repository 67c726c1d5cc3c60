"""A process of a run: what it runs and how its end is told."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from prime_megatron.cli.peers import check_place, trouble_of
from prime_megatron.errors import ExitCode, InputError, RunEnded, RunError
from prime_megatron.run.parentage import end_with_parent

LAUNCHED = "PRIME_MEGATRON_LAUNCHED"
"""Set by our launcher, to its process id: it prints the one failure that matters; the workers keep quiet, and end when
it does."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where the elastic agent expects a failing worker's report."""


def is_worker() -> bool:
    """True when a launcher (ours, torchrun, srun with RANK exported) started this process as a rank."""
    return "RANK" in os.environ


def world_size() -> int:
    """Processes of the run, as the launcher set it.

    Raises:
        InputError: RANK is set and its partners are not, or make no sense.
    """
    check_place()
    return int(os.environ["WORLD_SIZE"])


def worker_command(verb: str, args: argparse.Namespace) -> list[str]:
    """A worker's command line: the verb's own words again."""
    options = [] if args.resume is None else ["--resume", args.resume]
    options += ["--overwrite"] if args.overwrite else []
    return [sys.executable, "-m", "prime_megatron", verb, args.config, *options, *args.overrides]


def run_worker(body: Callable[[], int]) -> int:
    """Run the rank's part; returns its exit code and reports a failure once.

    Under our launcher the report goes to the agent's file, and the launcher prints that of the first rank that failed.
    Otherwise rank 0 prints InputError and RunError as one line (every rank meets the same one), and every rank prints
    an unexpected traceback.
    """
    if LAUNCHED in os.environ:
        end_with_parent(int(os.environ[LAUNCHED]))  # workers have sessions of their own: nothing else would end them
    quiet_libraries()
    try:
        return body()
    except InputError as error:
        return _report(str(error), ExitCode.BAD_INPUT, everyone=False)
    except RunEnded as error:
        return _report(str(error), ExitCode.GAVE_UP, everyone=False)
    except RunError as error:
        return _report(str(error), ExitCode.FAILED, everyone=False)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _report(_disk_full(error), ExitCode.FAILED, everyone=True) if full else _report_unexpected(error)
    except Exception as error:
        return _report_unexpected(error)


def _report_unexpected(error: Exception) -> ExitCode:
    """A peer that is not there is one line; anything else is a bug, and shows where."""
    meeting = f"MASTER_ADDR:MASTER_PORT {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    trouble = trouble_of(error, meeting)
    if trouble is None:
        return _report(traceback.format_exc(), ExitCode.FAILED, everyone=True)
    return _report(trouble.text, trouble.code, everyone=True, late=trouble.late)


def _disk_full(error: OSError) -> str:
    """One line for a full disk or quota, wherever it was met."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}; checkpoints are as they were: make room and start again with --resume auto"


def quiet_libraries() -> None:
    """Silence what libraries warn of on every start and no user can act on; `python -W always` shows it all."""
    if sys.warnoptions:
        return
    for module in (r"megatron\.", r"torch\.distributed", r"prime_megatron\.", "torch.optim"):
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=module)


def _report(text: str, code: ExitCode, *, everyone: bool, late: bool = False) -> ExitCode:
    """Tell the launcher, or print; returns the code. The launcher is told it, too: another rank's end may kill this one
    before it ends."""
    path = os.environ.get(ERROR_FILE)
    if LAUNCHED in os.environ and path:
        # The agent's own format, in whole seconds; time_s tells apart failures within one second.
        now = time.time()
        extra = {"timestamp": str(int(now)), "time_s": now, "exit_code": int(code), "late": late}
        try:
            Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")
        except OSError:  # no room, no more open files
            print(as_error(text), file=sys.stderr, flush=True)
    elif everyone or os.environ["RANK"] == "0":
        print(as_error(text), file=sys.stderr, flush=True)
    return code


def as_error(text: str) -> str:
    """Each line marked as an error; a traceback as it is."""
    if text.startswith("Traceback"):
        return text.rstrip()
    return "\n".join(f"error: {line}" for line in text.splitlines())
