"""JSON lines: one object a step (metrics) or a sample, every number exact.

Floats are written with the shortest digits that read back to the same bits. JSON has no non-finite numbers, so
they are the strings "NaN", "Infinity" and "-Infinity"; `read_jsonl` turns them back. Keys are sorted, "step" first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from prime_megatron.errors import RunError

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any, key: str) -> Any:
    """The value as JSON can hold it: numbers (0-dim tensors and numpy scalars too), strings, bools, None, lists.

    Raises:
        TypeError: any other type, naming the key.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, (list, tuple)):
        return [plain(item, key) for item in value]
    if hasattr(value, "item"):
        return plain(value.item(), key)
    raise TypeError(
        f"{key}: a metric is a number, a string, a bool, None or a list of them, not {type(value).__name__}"
    )


def format_line(step: int, values: Mapping[str, Any]) -> str:
    """One line, newline included: {"step": step, ...values by key}."""
    assert "step" not in values, "the step is given apart"
    row = {"step": step} | {key: plain(values[key], key) for key in sorted(values)}
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


class JsonlFile:
    """An append-only file, flushed after every write; the file is made with the first line.

    Raises:
        RunError: from `write`, when the file system refuses (a full disk); a resumed run cuts a torn line off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def write(self, lines: str) -> None:
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8", newline="\n")
            self._file.write(lines)
            self._file.flush()
        except OSError as error:
            self._abandon()
            raise RunError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _abandon(self) -> None:
        """Close without a second attempt to write what is buffered."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def truncate(self, step: int) -> None:
        """Drop what is beyond the step (see `truncate_jsonl`)."""
        self.close()
        truncate_jsonl(self.path, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def truncate_jsonl(path: Path, step: int) -> None:
    """Cut a JSON-lines file before its first line that is beyond the step, or that a crash left unfinished.

    Steps never decrease in a file, so everything after the cut is beyond the step, too. No file: nothing to do.
    """
    if not path.exists():
        return
    keep = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or "step" not in row or row["step"] > step:
                break
            keep += len(line)
    with path.open("r+b") as file:
        file.truncate(keep)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, non-finite numbers restored (also inside lists)."""
    with path.open(encoding="utf-8") as file:
        return [{key: _restored(value, key) for key, value in json.loads(line).items()} for line in file]


# Columns that hold text, in which "NaN" is a word like any other.
_TEXT = frozenset(
    {
        "uid",
        "kind",
        "filter",
        "prompt",
        "response",
        "verdict",
        "reason",
        "finish",
        "data_source",
        "ability",
        "ground_truth",
    }
)


def _restored(value: Any, key: str) -> Any:
    if isinstance(value, list):
        return [_restored(item, key) for item in value]
    if isinstance(value, str) and key not in _TEXT and value in _NON_FINITE:
        return _NON_FINITE[value]
    return value
