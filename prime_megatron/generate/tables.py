"""Rows of the forms in which data is published: JSON lines, a JSON list, a column dict of pandas, parquet; gzip too."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError

KINDS = ".jsonl, .json, .parquet, or the first two with .gz"
Row = dict[str, Any]


def read_table(path: Path) -> list[tuple[str, Row]]:
    """("file, row n", row) of every row, n from 1.

    Raises:
        InputError: no such file, an unknown kind, no rows, a damaged file or row; one line that names it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such data file; name a file of the kinds {KINDS}")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in (".jsonl", ".json", ".parquet") or (kind == ".parquet" and path.suffix == ".gz"):
        raise InputError(f"{path}: unknown kind of data file; use {KINDS}")
    rows = list(_parquet(path) if kind == ".parquet" else _json_rows(path, kind))
    if not rows:
        raise InputError(f"{path}: the data file is empty; it needs at least one row")
    return rows


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _json_rows(path: Path, kind: str) -> Iterator[tuple[str, Row]]:
    text = _text(path)
    if kind == ".jsonl" or _is_lines(text):
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _object(_parsed(line, f"{path}, row {number}"), f"{path}, row {number}")
        return
    value = _parsed(text, str(path))
    if isinstance(value, dict):
        value = _from_columns(value, path)
    for number, row in enumerate(value, start=1):
        yield _object(row, f"{path}, row {number}")


def _is_lines(text: str) -> bool:
    """Whether a .json file holds an object a line, as some sets are published."""
    first, _, rest = text.lstrip().partition("\n")
    if not first.startswith("{") or not rest.strip():
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _from_columns(value: Row, path: Path) -> list[Row]:
    """Rows of {"column": {"0": ..., "1": ...}}, as pandas writes a frame."""
    columns = list(value.values())
    if not columns or not all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        raise InputError(f"{path}: neither a list of rows nor columns of one length; use JSON lines")
    return [{name: column[key] for name, column in value.items()} for key in columns[0]]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _parsed(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{origin}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{origin}: not JSON that can be read (too deep, or a number too long)") from None


def _object(value: Any, origin: str) -> tuple[str, Row]:
    if not isinstance(value, dict):
        raise InputError(f"{origin}: a row must be a JSON object, got {type(value).__name__}")
    return origin, value


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa  # only parquet pays for its import
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
