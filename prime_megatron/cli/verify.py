"""prime-megatron verify: scores answers in a JSONL file, offline."""

import argparse
import collections
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prime_megatron.cli.options import check_output_file, path_option
from prime_megatron.config import CodeConfig
from prime_megatron.data.json_line import lines_of, parse_line
from prime_megatron.errors import InputError
from prime_megatron.verify import (
    Answer,
    Verdict,
    Verifiers,
    VerifyOptions,
    build_verifiers,
    check_custom,
    describe_custom,
)

KEYS = ("ability", "response", "ground_truth")
MORE_KEYS = {"prompt": str, "data_source": str, "extra_info": dict}
"""What a row may have besides, for custom rewards."""
WINDOW = 1024  # rows in flight: bounds memory, and keeps the workers fed past one slow answer


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Adds the `verify` verb; its run is `run`."""
    parser = subparsers.add_parser(
        "verify",
        allow_abbrev=False,
        help="score answers in a JSONL file",
        description='Scores rows {"ability", "response", "ground_truth"} (a list of ground truths: any of them)'
        ' and writes each row with "score" (0 to 1), "verdict" and "reason" added, in the same order.',
    )
    parser.add_argument("input", type=path_option, metavar="IN.jsonl", help="the rows to score")
    parser.add_argument(
        "--output", type=path_option, required=True, metavar="OUT.jsonl", help="where the scored rows go"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="math and code processes (default: one per core)",
    )
    parser.add_argument(
        "--timeout-s", type=float, default=VerifyOptions.timeout_s, metavar="S", help="limit per answer (default: 5)"
    )
    code = CodeConfig()
    parser.add_argument(
        "--code-score", choices=("fraction", "all", "original"), default=code.score, help="score of programs"
    )
    parser.add_argument(
        "--code-jail", choices=("landlock", "none"), default=code.jail, help="none: programs run with your rights"
    )
    parser.add_argument(
        "--code-timeout-s", type=float, default=code.timeout_s, metavar="S", help="limit per test (default: 4)"
    )
    parser.add_argument(
        "--custom",
        action="append",
        default=[],
        metavar="ABILITY=PACKAGE.MODULE:FUNCTION",
        help="score an ability with a function of your own, as verify.custom does in a run; may be given again",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.jsonl if it exists")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Scores args.input into args.output (all of `add_parser`'s arguments). Returns the exit code.

    Raises InputError for anything wrong with the input; nothing is left at the output path then.
    """
    if not 0 < args.code_timeout_s <= 3600:
        raise InputError(f"--code-timeout-s is {args.code_timeout_s}; give seconds above 0, at most 3600")
    code = CodeConfig(
        score=args.code_score,
        jail=args.code_jail,
        timeout_s=args.code_timeout_s,
        sample_timeout_s=max(CodeConfig().sample_timeout_s, args.code_timeout_s),
    )
    options = VerifyOptions(num_workers=args.workers, timeout_s=args.timeout_s, code=code)
    if not args.input.is_file():
        raise InputError(f"{args.input}: no such file")
    check_output_file(args.output, "--output", overwrite=args.overwrite)
    if not args.output.parent.is_dir():
        raise InputError(f"{args.output.parent}: no such folder for the output")
    custom = dict(parse_custom(text) for text in args.custom)
    check_custom(custom)
    for line in describe_custom(custom):
        print(line, file=sys.stderr)
    start_s = time.monotonic()
    tally = Tally()
    with open(args.input, "rb") as rows, build_verifiers(options, custom) as verifiers, whole_file(args.output) as out:
        verifiers.try_custom()
        _score_into(out, rows, str(args.input), verifiers, tally)
    print(tally.summary(time.monotonic() - start_s, args.output))
    return 0


def parse_custom(text: str) -> tuple[str, str]:
    """(ability, path) of "ability=package.module:function". Raises InputError for another form."""
    ability, equals, path = text.partition("=")
    if not ability or not equals:
        raise InputError(f"--custom {text!r}: not of the form ability=package.module:function")
    return ability, path


def _score_into(out: BinaryIO, rows: BinaryIO, name: str, verifiers: Verifiers, tally: "Tally") -> None:
    total_bytes = os.fstat(rows.fileno()).st_size
    with _progress() as bar:
        task = bar.add_task(f"verify {Path(name).name}", total=total_bytes, done_rows=0)
        for row, verdict in scored_rows(lines_of(rows, name), name, verifiers):
            scored = row | {"score": verdict.score, "verdict": verdict.verdict, "reason": verdict.reason}
            out.write(_encode(scored))
            tally.add(verdict)
            bar.update(task, completed=rows.tell(), done_rows=tally.num_rows)


@dataclass
class Tally:
    """Running totals for the closing line."""

    num_rows: int = 0
    total_score: float = 0.0
    verdicts: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, verdict: Verdict) -> None:
        self.num_rows += 1
        self.total_score += verdict.score
        self.verdicts[verdict.verdict] += 1

    def summary(self, seconds: float, output: Path) -> str:
        if not self.num_rows:
            return f"no rows; {output} is empty"
        parts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.most_common())
        mean, rate = self.total_score / self.num_rows, self.num_rows / max(seconds, 1e-9)
        return f"{self.num_rows} rows in {seconds:.1f} s ({rate:.0f}/s): {parts}; mean score {mean:.4f} -> {output}"


def scored_rows(
    lines: Iterator[tuple[int, bytes]], name: str, verifiers: Verifiers
) -> Iterator[tuple[dict[str, Any], Verdict]]:
    """Each (row, verdict), in order, at most WINDOW rows in flight. Raises InputError naming file and row."""
    flying: collections.deque[tuple[dict[str, Any], Future[Verdict]]] = collections.deque()
    for number, line in lines:
        row = parse_row(line, name, number)
        truths = truths_of(row["ground_truth"])
        more = {key: row[key] for key in MORE_KEYS if key in row}
        answer = Answer(row["ability"], row["response"], truths[0], other_truths=tuple(truths[1:]), **more)
        try:
            problem = verifiers.truth_problem(answer.ability, answer.ground_truth)
            if problem is not None and verifiers.runs_programs(answer.ability):
                raise InputError(f"ground_truth: {problem}")
            future = verifiers.submit(answer)
        except InputError as error:
            raise InputError(f"{name}, row {number}: {error}") from None
        flying.append((row, future))
        while flying and (len(flying) >= WINDOW or flying[0][1].done()):
            done_row, done = flying.popleft()
            yield done_row, done.result()
    for row, future in flying:
        yield row, future.result()


def parse_row(line: bytes, name: str, number: int) -> dict[str, Any]:
    """One JSON object with the three keys, perhaps more. Raises InputError naming file, row and key."""
    where = f"{name}, row {number}"
    row = parse_line(line, where, finite=True, halves=True)  # what a model wrote is scored
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object with the keys {', '.join(KEYS)}")
    for key in KEYS:
        if key not in row:
            raise InputError(f"{where}: no key {key!r} (a row needs {', '.join(KEYS)})")
        if key == "ground_truth" and not truths_of(row[key]):
            found = type(row[key]).__name__
            raise InputError(f"{where}: {key!r} is a {found}, not a string, a number or a list of these")
        if key != "ground_truth" and not isinstance(row[key], str):
            raise InputError(f"{where}: {key!r} is a {type(row[key]).__name__}, not a string")
    for key, kind in MORE_KEYS.items():
        if key in row and not isinstance(row[key], kind):
            raise InputError(f"{where}: {key!r} is a {type(row[key]).__name__}, not a {kind.__name__}")
    return row


def truths_of(value: Any) -> list[str]:
    """The ground truths of a row as text: text, a number, or a list of these; [] for anything else."""
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in values)
    return [str(one) for one in values] if plain else []


def _encode(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8
        return json.dumps(row).encode() + b"\n"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at path when the block ends well, and not at all when it raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done_rows]} rows"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(file=sys.stderr))
