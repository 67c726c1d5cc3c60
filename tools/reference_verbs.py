"""The page of the command line, from the parsers of its verbs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

from prime_megatron.cli.main import VERBS
from prime_megatron.errors import ExitCode

CODES = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed",
    ExitCode.BAD_INPUT: "bad input: one line says which file, row or key, and what to do",
    ExitCode.REQUEUE: "stopped with its state saved: start it again with `--resume auto`",
    ExitCode.GAVE_UP: "ended itself with what it had learned saved; it would end the same way again",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of one verb, as the command line has it."""
    subparsers = argparse.ArgumentParser(prog="prime-megatron", allow_abbrev=False).add_subparsers()
    importlib.import_module(f"prime_megatron.cli.{verb.replace('-', '_')}").add_parser(subparsers)
    return subparsers.choices[verb]


def verbs_page(made: str) -> str:
    """Every verb with its arguments and examples; ``made`` says how the page came to be."""
    lines = [
        "# Verbs\n", made,
        "`prime-megatron VERB --help` shows the same. `key=value` changes [a config key](config.md) of the file.\n",
        "| verb | |", "|---|---|", *(f"| [`{verb}`](#{verb}) | {_cell(text)} |" for verb, text in VERBS.items()), "",
        "## Exit codes\n", "| code | |", "|---|---|", *(f"| {code.value} | {CODES[code]} |" for code in ExitCode), "",
    ]  # fmt: skip
    for verb in VERBS:
        lines += [f"## {verb}\n", *_parser(parser_of(verb))]
    return "\n".join(lines)


def _parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Description, a row for every argument, examples; then the same of the verbs below it."""
    if parser.description:
        yield f"{_text(parser.description)}\n"
    actions = [action for action in parser._actions if action.dest != "help" and action.help != argparse.SUPPRESS]
    below = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    rows = [action for action in actions if action not in below]
    if rows:
        yield from ("| argument | |", "|---|---|")
        yield from (f"| {_name(action)} | {_cell(_meaning(action))} |" for action in rows)
        yield ""
    if parser.epilog:
        yield from ("```text", parser.epilog.strip(), "```", "")
    for action in below:
        for name, inner in action.choices.items():
            yield f"### {parser.prog.removeprefix('prime-megatron ')} {name}\n"
            yield from _parser(inner)


def _name(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    value = metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = value.replace("|", "\\|")
    if not action.option_strings:
        return f"`{value if metavar else action.dest}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    told = (action.help or "") % {"default": action.default, "prog": "prime-megatron", "metavar": action.metavar}
    shown = action.default not in (None, False, argparse.SUPPRESS, []) and "default" not in told
    parts = [told, f"default {action.default}" if shown and action.option_strings else ""]
    return "; ".join(part for part in (*parts, "required" if action.option_strings and action.required else "") if part)


def _text(text: str) -> str:
    return text.strip().replace("<", "&lt;")


def _cell(text: str) -> str:
    return " ".join(_text(text).split()).replace("|", "\\|")
