"""Which checkpoints stay."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from prime_megatron.checkpoint.discovery import candidates
from prime_megatron.checkpoint.layout import MARKER_FILE, leftovers, step_of


def kept_steps(steps: Iterable[int], keep_last: int, keep_every: int) -> set[int]:
    """The newest ``keep_last`` steps, and every multiple of ``keep_every`` (0: none)."""
    ordered = sorted(set(steps))
    milestones = {step for step in ordered if keep_every and step % keep_every == 0}
    return set(ordered[-keep_last:]) | milestones


def prune(root: Path, keep_last: int, keep_every: int, broken: Collection[Path] = ()) -> list[Path]:
    """Delete finished checkpoints that need not stay, and what unfinished saves left; returns what was deleted.

    What has no marker or is ``broken`` neither counts as one of the newest nor is deleted. The marker goes first: a
    deletion that is cut short leaves a folder that is not taken for a checkpoint.
    """
    finished = {
        step_of(path): path for path in candidates(root) if path not in broken and (path / MARKER_FILE).exists()
    }
    kept = kept_steps((step for step in finished if step is not None), keep_last, keep_every)
    gone = [path for step, path in finished.items() if step not in kept]
    for path in gone:
        (path / MARKER_FILE).unlink()
        shutil.rmtree(path)
    for path in leftovers(root):
        shutil.rmtree(path)
        gone.append(path)
    return gone
