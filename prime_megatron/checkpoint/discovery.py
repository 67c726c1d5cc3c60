"""Which checkpoint a run continues from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.checkpoint.layout import leftovers, step_of
from prime_megatron.checkpoint.manifest import damage
from prime_megatron.errors import InputError

AUTO = "auto"


@dataclass(frozen=True)
class FoundCheckpoint:
    """What a search came to."""

    path: Path | None
    """The checkpoint to load; None: there is none, start from the beginning."""
    passed_over: tuple[str, ...] = ()
    """One line for every newer one that is damaged or was never finished."""
    broken: tuple[Path, ...] = ()
    """The damaged ones among them."""


@dataclass(frozen=True)
class Listing:
    """What lies in a checkpoints folder."""

    candidates: list[Path]
    """Newest first."""
    unfinished: list[Path]


def find(
    root: Path,
    resume: str,
    check: Callable[[Path], str | None] = damage,
    agree: Callable[[Listing], Listing] = lambda listing: listing,
) -> FoundCheckpoint:
    """The checkpoint that ``--resume`` names; every byte of it is checked.

    Args:
        root: <output_dir>/checkpoints.
        resume: "auto" for the newest complete one, or a folder.
        check: what is wrong with a folder; where ranks share the hashing, a collective.
        agree: makes all ranks go through one listing (a shared file system may show each another).

    Raises:
        InputError: the named folder is damaged; with "auto": there are checkpoints, and none of them is whole.
    """
    if resume != AUTO:
        problem = check(Path(resume))
        if problem is not None:
            raise InputError(f"--resume {resume}: {problem}; give another checkpoint, or --resume auto")
        return FoundCheckpoint(Path(resume))
    listing = agree(Listing(candidates(root), leftovers(root)))
    passed_over = [f"{path} was never finished; it is passed over" for path in listing.unfinished]
    broken = []
    for path in listing.candidates:
        problem = check(path)
        if problem is None:
            return FoundCheckpoint(path, tuple(passed_over), tuple(broken))
        passed_over.append(f"{path} {problem}; it is passed over")
        broken.append(path)
    if broken:
        raise InputError(
            f"--resume auto: no checkpoint in {root} is whole; mend one, or move them away to start over\n"
            + "\n".join(passed_over)
        )
    return FoundCheckpoint(None, tuple(passed_over))


def candidates(root: Path) -> list[Path]:
    """Everything with a checkpoint's name, newest first."""
    if not root.is_dir():
        return []
    named = [(step, path) for path in root.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(named, reverse=True)]
