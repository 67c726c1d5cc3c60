"""The last run of each arm as a report: what it needs of their folders is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from prime_megatron.cli.main import main
from prime_megatron.report.run import MAX_RUNS

KEPT = "last"
"""Below the study's folder: a folder for each arm, with its last run's logs."""
LOGS = ("metrics.jsonl", "memory.jsonl", "samples.jsonl", "events.jsonl")


def keep(folder: Path, kept: Path) -> None:
    """Move a run's logs to where its arm's last ones are."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for name in LOGS:
        if (folder / name).is_file():
            shutil.move(folder / name, kept / name)


def write_page(study: Path) -> None:
    """study/report.html of the arms that were run here, the latest ones; none where none was."""
    kept = sorted((study / KEPT).glob("*"), key=lambda folder: folder.stat().st_mtime)[-MAX_RUNS:]
    if kept:
        main(["report", *map(str, sorted(kept)), "--output", str(study / "report.html")])
