"""Data files: which ones a config names, and their rows one by one, in bounded memory."""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from prime_megatron.data.json_line import lines_of, parse_line
from prime_megatron.data.messages import kind_of
from prime_megatron.errors import InputError

KINDS = (".jsonl", ".jsonl.gz", ".parquet", ".parquet.gz")
PARQUET_ROWS_AT_ONCE = 1024


def data_files(paths: Sequence[str]) -> list[str]:
    """The files that these entries name, in order: a file, a folder (its data files, those of folders in it too, by
    name), or a pattern such as "train/*.jsonl".

    Raises:
        InputError: an entry that names no data file.
    """
    files: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            found = [str(file) for file in sorted(Path(path).rglob("*")) if file.is_file() and _kind(str(file))]
            if not found:
                raise InputError(f"{path}: no data file in this folder; use {', '.join(KINDS)}")
        elif glob.has_magic(path) and not Path(path).exists():
            found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
            if not found:
                raise InputError(f"{path}: no file matches; check data.train and data.eval")
        else:
            found = [path]
        files += found
    return files


def iterate(path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a data file, without holding the whole file.

    Args:
        path: a file of one of the KINDS.
        columns: what is read of a parquet file, where it is there; None: all.

    Raises:
        InputError: missing file, unknown kind, a line that is not a JSON object, a damaged file.
    """
    kind = _kind(path)
    if not kind:
        raise InputError(f"{path}: unknown kind of data file; use {', '.join(KINDS)}")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such data file; check data.train and data.eval")
    try:
        with gzip.open(path) if kind.endswith(".gz") else open(path, "rb") as file:
            opened = cast(IO[bytes], file)
            yield from _jsonl(path, opened) if kind.startswith(".jsonl") else _parquet(path, opened, columns)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged or cut off ({error}); make it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def unused_columns(path: str, known: Sequence[str]) -> list[str]:
    """Columns of a parquet file that nothing reads; none of another file, whose rows tell for themselves."""
    if _kind(path) != ".parquet" or not Path(path).is_file():
        return []
    import pyarrow as pa  # only parquet pays for its import
    import pyarrow.parquet as pq

    try:
        return [name for name in pq.read_schema(path).names if name not in known]
    except (pa.ArrowException, OSError):
        return []  # reading its rows tells why


def _kind(path: str) -> str:
    name = Path(path).name
    if name.startswith("."):
        return ""
    return next((kind for kind in sorted(KINDS, key=len, reverse=True) if name.endswith(kind)), "")


def _jsonl(path: str, file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines_of(file, path):
        row = parse_line(line, f"{path}, row {number}")
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: a row must be a JSON object, got {kind_of(row)}")
        yield number, row


def _parquet(path: str, file: IO[bytes], columns: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa  # only parquet pays for its import
    import pyarrow.parquet as pq

    try:
        # A packed file has no random access: it is unpacked into memory.
        with pq.ParquetFile(io.BytesIO(file.read()) if path.endswith(".gz") else path) as table:
            names = [name for name in table.schema_arrow.names if columns is None or name in columns]
            number = 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS_AT_ONCE, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None
