"""prime-megatron report: runs as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from prime_megatron.cli.options import check_output_file, new_verb, path_option
from prime_megatron.errors import InputError

DEFAULT_NAME = "report.html"
MARK = b'<meta name="generator" content="prime-megatron report">'
"""In every report; what has it is replaced without being asked."""
MARK_WITHIN = 1000
"""Bytes from the file's beginning."""

_DESCRIPTION = """\
Write what runs did as one HTML file that needs nothing else: curves, time and memory, alarms and restarts, what the PRM
gives right and wrong responses, and the process reward of every token of sampled responses. It opens from a disk, needs
no server and no network, and stays under 10 MB. A run may be under way, or of an older version: what is missing is left
out.
"""

_EPILOG = """\
examples:
  prime-megatron report runs/quickstart                          # writes runs/quickstart/report.html
  prime-megatron report runs/a runs/b --output compare.html      # two runs in the same pictures
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers, "report", summary="show runs as one HTML page", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("runs", nargs="+", type=path_option, metavar="RUN", help="output folder of a run")
    parser.add_argument(
        "--output", type=path_option, metavar="FILE", help="the page; by default report.html in the first run's folder"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE even if it is no report")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page; 0.

    Raises:
        InputError: a folder that is no run's, a file that may not be replaced or written, no matplotlib.
    """
    from prime_megatron.report.page import page
    from prime_megatron.report.run import read_runs

    output: Path = args.runs[0] / DEFAULT_NAME if args.output is None else args.output
    runs = read_runs(args.runs)
    check_output_file(output, "--output", overwrite=args.overwrite or _is_report(output))
    text = page(runs).encode("utf-8")
    write_page(output, text)
    print(f"{output}: {len(text) / 1e6:.1f} MB; open it in a browser")
    return 0


def write_page(path: Path, page: bytes) -> None:
    """Put the page there whole, or not at all. Raises InputError: it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(page)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror or error}); give another") from None


def _is_report(path: Path) -> bool:
    """Whether a file was written by this verb."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK in file.read(MARK_WITHIN)
