"""Stages of `prime-megatron curate` that ask no model: read, filter, dedup, decontaminate."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from prime_megatron import __version__
from prime_megatron.cli.engine_options import add_grading_options, verify_options
from prime_megatron.config.curate import CurateConfig
from prime_megatron.config.load import to_dict
from prime_megatron.curate.against import digest_of, file_problems, suite_problems
from prime_megatron.curate.decision import Decision, drop, keep, to_line
from prime_megatron.curate.dedup import Compared, check_bands, compared_lines, decide_duplicates, find_duplicates
from prime_megatron.curate.filter import check_languages, decide_rules
from prime_megatron.curate.held_out import HeldOutIndex
from prime_megatron.curate.read import FORMS, SourceReader, decide_sources
from prime_megatron.curate.row import CuratedRow
from prime_megatron.curate.stage import (
    Files,
    Reader,
    RowReader,
    Source,
    Teller,
    batches,
    decisions_of,
    fill_blocks,
    finish,
    num_blocks,
    survey,
)  # fmt: skip
from prime_megatron.curate.tables import input_files
from prime_megatron.errors import InputError
from prime_megatron.generate.blocks import open_blocks
from prime_megatron.verify import build_verifiers
from prime_megatron.verify.code.check import prove_jail

BLOCK, READ_BLOCK = 4096, 1024
"""Rows that are decided and kept together; published rows, whose truths are verified."""
Report = dict[str, Any]
Arguments = argparse.Namespace
Run = Callable[[Arguments, CurateConfig, list[str], Files, ExitStack], Report]


@dataclass(frozen=True)
class StageVerb:
    """A stage on the command line."""

    summary: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Run


def head_of(source: Source, settings: dict[str, Any]) -> Report:
    """What a report begins with, and what tells a stage from another one."""
    named = [{"file": file, "sha256": digest} for file, digest in zip(source.files, source.digests, strict=True)]
    return {"version": __version__, "inputs": named, "settings": settings}


def decide_rows(
    name: str,
    target: Files,
    source: Source,
    read: Reader[Any],
    settings: dict[str, Any],
    decide: Callable[[list[Any]], Sequence[Decision]],
    block: int,
) -> Report:
    """A stage whose rows are decided block by block."""
    head = head_of(source, settings)
    with open_blocks(target.blocks, {"stage": name, "block": block, **head}) as blocks:
        fill_blocks(blocks, source, read, block, lambda rows: map(to_line, decide(rows)), Teller(name))
        return finish(target, name, head, decisions_of(blocks, num_blocks(source, block)))


def _read_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--form", choices=sorted(FORMS), required=True, help="how the source is published")
    parser.add_argument("--name", help="of the source, begins the ids (default: the form)")
    add_grading_options(parser)


def _read(args: Arguments, config: CurateConfig, files: list[str], target: Files, stack: ExitStack) -> Report:
    name = args.name or args.form
    if not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"--name {name!r}: letters, digits, - and _ make a name")
    options = verify_options(args)
    verifiers = stack.enter_context(build_verifiers(options))
    read = SourceReader(args.form, name, config, verifiers.require)
    source = survey(files, read, "read")
    if "code" in read.abilities and args.code_jail != "none":
        prove_jail(options.code)
    settings = {"form": args.form, "name": name, "wording": to_dict(config.wording), **to_dict(config.read)}
    return decide_rows(
        "read", target, source, read, settings, lambda rows: decide_sources(rows, config, verifiers), READ_BLOCK
    )


def _filter(args: Arguments, config: CurateConfig, files: list[str], target: Files, stack: ExitStack) -> Report:
    check_languages(config.filter)
    read = RowReader()
    source = survey(files, read, "filter")
    settings = to_dict(config.filter)
    return decide_rows("filter", target, source, read, settings, lambda rows: decide_rules(rows, config.filter), BLOCK)


def _dedup(args: Arguments, config: CurateConfig, files: list[str], target: Files, stack: ExitStack) -> Report:
    check_bands(config.dedup)
    read = RowReader()
    source = survey(files, read, "dedup")
    head = head_of(source, to_dict(config.dedup))
    with open_blocks(target.blocks, {"stage": "dedup", "block": BLOCK, **head}) as blocks:
        tell = Teller("dedup: signatures")
        fill_blocks(blocks, source, read, BLOCK, lambda rows: compared_lines(rows, config.dedup), tell)
        compared = Compared(blocks, num_blocks(source, BLOCK), BLOCK)
        found = find_duplicates(compared, target.blocks, config.dedup, Teller("dedup: comparing"))
        return finish(target, "dedup", head, decide_duplicates(batches(source, read, BLOCK), found))


def _decontaminate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", action="append", default=[], help="sets of a suite; may be given again")
    parser.add_argument("--data", metavar="DIR", help="folder of the suites' files (default: the YAML file's own)")
    parser.add_argument("--sets", default="", metavar="NAME,...", help="some of the suites' sets")
    parser.add_argument(
        "--against", action="append", default=[], metavar="FILE", help="rows with problems, such as those kept for RL"
    )


def _decontaminate(args: Arguments, config: CurateConfig, files: list[str], target: Files, stack: ExitStack) -> Report:
    if not args.suite and not args.against:
        raise InputError("decontaminate: name what is held out, with --suite or --against")
    sets = [name.strip() for name in args.sets.split(",") if name.strip()]
    problems = [one for suite in args.suite for one in suite_problems(suite, args.data, sets)]
    problems += file_problems(input_files(args.against))
    index = HeldOutIndex(problems, config.decontaminate)
    read = RowReader()
    source = survey(files, read, "decontaminate")
    settings = to_dict(config.decontaminate) | {"problems": len(problems), "problems_sha256": digest_of(problems)}

    def decide(rows: list[CuratedRow]) -> list[Decision]:
        found = index.copies([row.problem for row in rows])
        return [keep(row) if why is None else drop(row, *why[:2]) for row, why in zip(rows, found, strict=True)]

    return decide_rows("decontaminate", target, source, read, settings, decide, BLOCK)


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


STAGES = {
    "read": StageVerb(
        "published files to rows of one schema",
        "Published files to rows with a ground truth that holds.",
        _read_options,
        _read,
    ),
    "filter": StageVerb("drop rows by rules", "Figures, proofs, boxes, multiple choice, languages.", _nothing, _filter),
    "dedup": StageVerb(
        "drop near-duplicates", "Of problems that are all but the same, the first stays.", _nothing, _dedup
    ),
    "decontaminate": StageVerb(
        "drop copies of held-out problems",
        "Rows that copy a problem of an evaluation suite, or of other rows.",
        _decontaminate_options,
        _decontaminate,
    ),
}
