"""The command line: one verb, one file."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys

from prime_megatron import __version__
from prime_megatron.cli.peers import allow_open_files
from prime_megatron.cli.streams import lasting
from prime_megatron.cli.worker import as_error
from prime_megatron.errors import ExitCode, InputError, RunError
from prime_megatron.run.signals import STOP_SIGNALS, heard

VERBS = {
    "train": "train a policy with PRIME",
    "sft": "warm a model up by supervised fine-tuning",
    "watch": "show how a run stands, in the terminal",
    "curate": "make training rows of raw files, a stage at a time",
    "generate": "answer prompts with an engine or an endpoint: a file of samples",
    "evaluate": "evaluate a model on a suite: figures with intervals, and their contract",
    "compare": "hold two evaluations against each other",
    "prm": "train the implicit PRM alone on labelled responses",
    "score": "give a PRM's rewards for given responses",
    "best-of-n": "choose among samples by PRM, majority and chance, and compare",
    "process-bench": "find first wrong steps on ProcessBench, by a PRM or by asking a model",
    "report": "show runs as one HTML page: curves, rewards token by token",
    "slurm": "write a SLURM job script for a config",
    "validate": "check a config and show what it means; starts nothing",
    "verify": "score answers offline, JSON lines in, JSON lines out",
    "jail-check": "try the jail of generated programs on this machine",
    "plan-step": "show what a step runs, its cost and why; starts nothing",
    "rehearse": "build every distinct rank of a layout at full size, without GPU or weights",
}

_EPILOG = """\
examples:
  prime-megatron validate run.yaml
  prime-megatron plan-step run.yaml prm.update=before
  prime-megatron train run.yaml parallel.pipeline=2 launch.processes_per_node=2
  prime-megatron train run.yaml --resume auto
  prime-megatron watch runs/quickstart
  prime-megatron verify answers.jsonl --output scored.jsonl

exit codes: 0 done, 1 failed, 2 bad input, 85 stopped with its state saved (start again with --resume auto),
86 ended itself with what it had learned saved (starting again would end the same way)
"""

_STOPPABLE = ("train", "sft", "prm")
_WITH_OVERRIDES = (
    "train", "slurm", "sft", "prm", "score", "process-bench", "validate", "plan-step", "rehearse", "curate"
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit code. Errors of the user and of the run are one line each on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before anything is imported or read: from here on a stop signal ends a run with the code that asks for another
    # turn. The launcher and the trainer take over once there is something to hand on or to save.
    stoppable = bool(arguments) and arguments[0] in _STOPPABLE
    with lasting(runs=stoppable) as verdict:
        return verdict(_run(arguments, stoppable=stoppable))


def _run(arguments: list[str], *, stoppable: bool) -> int:
    try:
        with heard(STOP_SIGNALS, _stopped) if stoppable else contextlib.nullcontext():
            if stoppable:
                allow_open_files()
                # What torch's C++ parts warn of when a peer is not there is no news: the cause is told in one line.
                os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
            args = _parse(arguments)
            return int(args.run(args))
    except InputError as error:
        print(as_error(str(error)), file=sys.stderr, flush=True)
        return ExitCode.BAD_INPUT
    except RunError as error:
        print(as_error(str(error)), file=sys.stderr, flush=True)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _stopped(number: signal.Signals) -> None:
    # No clean-up: it may be inside a library's initialisation, and there is nothing to save.
    os._exit(ExitCode.REQUEUE)


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse; only the chosen verb's file is imported, so that no verb pays for another's libraries."""
    parser = argparse.ArgumentParser(
        prog="prime-megatron",
        description="PRIME on Megatron-core: policy, reference and implicit PRM in one trainer.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"prime-megatron {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verb = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if verb is not None and verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(VERBS)}"
        raise InputError(f"unknown verb {verb!r}; {hint}")
    for name, help_text in VERBS.items():
        if name == verb:
            importlib.import_module(f"prime_megatron.cli.{name.replace('-', '_')}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=help_text, allow_abbrev=False)
    args, rest = parser.parse_known_args(arguments)
    # argparse takes one run of positional words; overrides behind an option are left over.
    stray = [word for word in rest if verb not in _WITH_OVERRIDES or word.startswith("-") or "=" not in word]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args
