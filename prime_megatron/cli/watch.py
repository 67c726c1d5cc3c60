"""prime-megatron watch: a run in the terminal, while it runs and afterwards."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from prime_megatron.cli.options import new_verb, path_option
from prime_megatron.cli.streams import LastingStream
from prime_megatron.errors import ExitCode
from prime_megatron.watch.frame import frame
from prime_megatron.watch.life import LifeWatch, State
from prime_megatron.watch.standing import Standing, read_standing

_DESCRIPTION = """\
Show how a run stands: progress and time left, what it does now, where the last step's time went, alarms, the end of a
response. Reads the run's output folder and changes nothing. Ends by itself when the run is finished; Ctrl-C before.
"""

_EPILOG = """\
examples:
  prime-megatron watch runs/quickstart
  prime-megatron watch runs/quickstart --once
  ssh login tmux new 'prime-megatron watch /shared/runs/7b'

exit codes: 0, and 1 with --once where the run is dead
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb; its run is `run`."""
    parser = new_verb(
        subparsers, "watch", summary="show how a run stands, in the terminal", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("folder", type=path_option, metavar="RUN", help="a run's output folder (run.output_dir)")
    parser.add_argument("--once", action="store_true", help="print it once")
    parser.add_argument(
        "--every", type=_seconds, default=2.0, metavar="S", help="seconds between two looks (default: 2)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show it; returns the exit code.

    Raises:
        InputError: no such folder, or one that cannot be read.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a response in a terminal without its letters
    console, life = Console(highlight=False), LifeWatch(args.folder)
    standing = read_standing(args.folder, life.look())
    if args.once:
        show(console, standing)
        return ExitCode.FAILED if standing.state is State.dead else ExitCode.DONE
    try:
        follow(console, standing, looks(args.folder, life, args.every))
    except KeyboardInterrupt:
        if console.is_alt_screen:  # it came before the screen was whole
            console.set_alt_screen(False)
            console.show_cursor(True)
    return ExitCode.DONE


def looks(folder: Path, life: LifeWatch, every_s: float) -> Iterator[Standing]:
    """The run's standing again and again, up to the one in which it is finished."""
    while True:
        time.sleep(every_s)
        standing = read_standing(folder, life.look())
        yield standing
        if standing.state is State.finished:
            return


def follow(console: Console, standing: Standing, later: Iterator[Standing]) -> None:
    """Show a run until it is finished: on a terminal in place, elsewhere one frame after the other."""
    if standing.state is State.finished:
        show(console, standing)
        return
    if not console.is_terminal:
        show(console, standing)
        for standing in later:
            console.print()
            show(console, standing)
            if isinstance(sys.stdout, LastingStream) and sys.stdout.failure is not None:
                return  # the reader has seen enough
        return
    page = _page(standing, console)
    live = Live(page, console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with live:
        for standing in later:
            live.update(_page(standing, console), refresh=True)
    show(console, standing)


def show(console: Console, standing: Standing) -> None:
    """Print it once."""
    console.print(Text("\n").join(frame(standing, _width(console))), soft_wrap=True)


def _page(standing: Standing, console: Console) -> Text:
    return Text("\n").join(frame(standing, _width(console), console.height - 1))


def _width(console: Console) -> int:
    """A terminal's, or what COLUMNS says, or 80."""
    return console.width if console.is_terminal else shutil.get_terminal_size((80, 24)).columns


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds from 0.1 to 3600, got {text!r}")
    return seconds
