"""What the verbs' command lines share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from prime_megatron.config.paths import user_path
from prime_megatron.errors import InputError

Subparsers = argparse._SubParsersAction


def new_verb(
    subparsers: Subparsers[argparse.ArgumentParser], name: str, *, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    """A verb's parser: texts stand as they are written, options are never abbreviated."""
    return subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_config(parser: argparse.ArgumentParser, text: str) -> None:
    """CONFIG and the keys to change in it."""
    parser.add_argument("config", metavar="CONFIG", help=text)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys to change, dotted")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """--resume, for verbs that save checkpoints."""
    parser.add_argument(
        "--resume",
        metavar="auto|PATH",
        type=_resume,
        help="continue from the newest complete checkpoint, or from this one",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """--overwrite, for verbs that write a run's folder."""
    parser.add_argument(
        "--overwrite", action="store_true", help="delete what an earlier run wrote to the output folder"
    )


def _resume(text: str) -> str:
    return text if text == "auto" else str(path_option(text))


def path_option(text: str) -> Path:
    """An option's path: ~ and variables stand for what they do in a shell, which leaves them alone behind `=`."""
    try:
        return Path(user_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {error}, got {text!r}") from None


def check_output_file(path: Path, option: str, *, overwrite: bool) -> None:
    """Whether a file may be written here: there is none, or a regular one that may be replaced.

    Raises:
        InputError: a folder, a link, a pipe, a device; a file that may not be replaced.
    """
    if not os.path.lexists(path):
        return
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder; give a file")
    if path.is_symlink() or not path.is_file():
        kind = "a link" if path.is_symlink() else "a pipe or a device"
        raise InputError(f"{option} {path}: is {kind}, and only a regular file is replaced; give another")
    if not overwrite:
        raise InputError(f"{option} {path}: exists; give --overwrite to replace it")
