"""What the verbs' command lines share."""

from __future__ import annotations

import argparse

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
        "--resume", metavar="auto|PATH", help="continue from the newest complete checkpoint, or from this one"
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """--overwrite, for verbs that write a run's folder."""
    parser.add_argument(
        "--overwrite", action="store_true", help="delete what an earlier run wrote to the output folder"
    )
