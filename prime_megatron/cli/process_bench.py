"""prime-megatron process-bench: the first wrong step of given solutions, found by a PRM or by asking a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prime_megatron.cli.options import new_verb, path_option
from prime_megatron.cli.scoring import check_output, start_scoring
from prime_megatron.cli.worker import is_worker, run_worker, world_size
from prime_megatron.config import ScoreConfig
from prime_megatron.config.load import load_score_config
from prime_megatron.errors import ExitCode, InputError
from prime_megatron.evaluate.process_bench import (
    STEP_SCORES,
    Solution,
    best_threshold,
    first_below,
    found,
    is_tuning,
    kinds_missing,
    read_solutions,
)

_DESCRIPTION = """\
Read ProcessBench's files as they are published (problem, steps, label) and find the first wrong step of each solution:

  --prm FOLDER    by an implicit PRM: the first step whose score is below a threshold. The threshold is tuned on a part
                  of the rows (--tune-share, whole problems), which F1 then leaves out
  --judge FOLDER  by asking any model for + or - behind every step; needs no labels, so no threshold and no tuning

F1 is the harmonic mean of the accuracy on rows with a wrong step and on rows without one.
"""

_EPILOG = """\
examples:
  prime-megatron process-bench gsm8k.json math.json --prm runs/prm/model --output found.jsonl
  prime-megatron process-bench gsm8k.json --judge MODEL dtype=bfloat16 parallel.tensor=2 processes=2
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers,
        "process-bench",
        summary="find first wrong steps on ProcessBench, by a PRM or by asking a model",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("words", nargs="+", metavar="FILE|key=value", help="the files; settings of the layout")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--prm", metavar="FOLDER", help="HF folder of the PRM")
    who.add_argument("--judge", metavar="FOLDER", help="HF folder of the model to ask")
    parser.add_argument(
        "--score", choices=tuple(STEP_SCORES), default="value", help="of a step's rewards (--prm; default: value)"
    )
    parser.add_argument("--threshold", type=float, metavar="X", help="use this one; nothing is tuned or left out")
    parser.add_argument(
        "--tune-share", type=float, default=0.2, metavar="P", help="of the problems, to tune on (default: 0.2)"
    )
    parser.add_argument(
        "--output", type=path_option, metavar="OUT.jsonl", help="write every row's steps and verdict, too"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl if it exists")
    parser.set_defaults(run=run, overrides=[])


def run(args: argparse.Namespace) -> int:
    """Launch, or be a rank; returns the exit code.

    Raises:
        InputError: before anything is started or written.
    """
    files = [word for word in args.words if "=" not in word]
    args.overrides = [word for word in [*args.words, *args.overrides] if "=" in word]
    config = load_score_config(args.overrides)
    if is_worker():
        return run_worker(lambda: _find(args, files, config))
    if args.output is not None:
        check_output(args.output, overwrite=args.overwrite)
    if not files:
        raise InputError("process-bench: name a file of ProcessBench")
    _check_rows(args, files)
    from prime_megatron.run.scoring import check_scoring, resolve_prm

    folders: tuple[str, ...] = (args.judge,)
    if args.prm is not None:
        resolved = resolve_prm(args.prm, config)
        folders = (resolved.prm, resolved.reference)
    check_scoring(folders, config, config.processes)
    words = ["process-bench", *files, *args.overrides]
    words += ["--prm", args.prm] if args.prm is not None else ["--judge", args.judge]
    words += ["--score", args.score, "--tune-share", str(args.tune_share)]
    words += [] if args.threshold is None else ["--threshold", str(args.threshold)]
    words += [] if args.output is None else ["--output", str(args.output)]
    return start_scoring(
        [*words, *(["--overwrite"] if args.overwrite else [])], config, lambda: _find(args, files, config)
    )


def _check_rows(args: argparse.Namespace, files: Sequence[str]) -> None:
    """Rows of both kinds where they are needed: in every file, and in the tuned part."""
    if not 0 < args.tune_share < 1:
        raise InputError(f"--tune-share is {args.tune_share}; give a share between 0 and 1")
    tuned: list[Solution] = []
    for path in files:
        rows = read_solutions(path)
        tuned += [row for row in rows if is_tuning(row, args.tune_share)]
        if missing := kinds_missing([row for row in rows if _counts(args, row)]):
            raise InputError(f"{path}: of the rows that count {missing}; F1 needs both kinds")
    if _tunes(args) and (missing := kinds_missing(tuned)):
        raise InputError(f"--tune-share {args.tune_share}: of the rows to tune on {missing}; give a larger share")


def _tunes(args: argparse.Namespace) -> bool:
    return args.prm is not None and args.threshold is None


def _counts(args: argparse.Namespace, row: Solution) -> bool:
    """Whether F1 is of this row, too."""
    return not (_tunes(args) and is_tuning(row, args.tune_share))


def _find(args: argparse.Namespace, files: Sequence[str], config: ScoreConfig) -> int:
    from prime_megatron.run.first_wrong import by_judge, by_prm

    rows = [(path, row) for path in files for row in read_solutions(path)]
    solutions = [row for _, row in rows]
    if args.prm is not None:
        scores = by_prm(solutions, args.prm, args.score, config, world_size())
        if not scores:
            return ExitCode.DONE  # not the first rank
        threshold = args.threshold
        if threshold is None:
            tuned = [
                (row.label, one) for row, one in zip(solutions, scores, strict=True) if is_tuning(row, args.tune_share)
            ]
            threshold = best_threshold([label for label, _ in tuned], [one for _, one in tuned])
            print(f"threshold {threshold:.6g}, tuned on {len(tuned)} rows that F1 leaves out ({args.score} of a step)")
        predicted = [first_below(one, threshold) for one in scores]
        told: list[dict[str, Any]] = [{"step_scores": one} for one in scores]
    else:
        judged = by_judge(solutions, args.judge, config, world_size())
        if not judged:
            return ExitCode.DONE
        predicted = [one.first_wrong for one in judged]
        told = [{"plus_logprobs": one.plus, "minus_logprobs": one.minus} for one in judged]
    _report(args, files, rows, predicted)
    if args.output is not None:
        from prime_megatron.generate.blocks import whole_file

        with whole_file(args.output) as out:
            for (path, row), guess, more in zip(rows, predicted, told, strict=True):
                line = {"file": path, "id": row.id, "label": row.label, "predicted": guess, **more}
                out.write(json.dumps(line).encode() + b"\n")
    return ExitCode.DONE


def _report(
    args: argparse.Namespace, files: Sequence[str], rows: Sequence[tuple[str, Solution]], predicted: Sequence[int]
) -> None:
    print("| file | rows with an error | right | rows without | right | F1 |")
    print("|---|---|---|---|---|---|")
    f1s = []
    for path in files:
        mine = [(row, guess) for (file, row), guess in zip(rows, predicted, strict=True) if file == path]
        kept = [(row.label, guess) for row, guess in mine if _counts(args, row)]
        one = found([label for label, _ in kept], [guess for _, guess in kept])
        f1s.append(one.f1)
        name = Path(path).name
        print(
            f"| {name} | {one.num_wrong} | {one.accuracy_wrong:.3f} | {one.num_right} | {one.accuracy_right:.3f} "
            f"| {one.f1:.3f} |"
        )
    print(f"mean F1 of {len(files)} files: {sum(f1s) / len(f1s):.3f}")
