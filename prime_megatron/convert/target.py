"""What both directions of the conversion share: the plan, the target's atomic folder, blocks of rows."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from prime_megatron.errors import InputError

BLOCK_BYTES = 32 * 2**20
"""Most of a tensor that is in memory at once, one row aside."""
COMPANIONS = "hf"
"""Folder of a checkpoint that keeps the source's other files: config, tokenizer, templates."""
DTYPES_FILE = "hf_dtypes.json"
"""In a checkpoint: each Hugging Face tensor's own dtype, which stacking may have widened."""
FLOATS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""malloc.h's numbers."""
OnBytes = Callable[[int], None]
"""Told of every so many bytes that are done."""


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion would do."""

    architecture: str
    num_tensors: int
    num_params: int
    num_bytes: int
    dtypes: tuple[str, ...]
    """Of the output, without "torch."."""
    files: tuple[str, ...]
    """Weights files of the output."""
    free_bytes: int
    """On the output's disk."""


@contextmanager
def writing(target: Path, num_bytes: int) -> Iterator[Path]:
    """A folder beside the target that takes its name when all went well, and is removed when not."""
    partial = target.parent / f".{target.name}.partial"
    _reuse_freed_memory()
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target}: exists and is not empty; choose another folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < num_bytes:
            raise InputError(f"{target}: needs {num_bytes:,} bytes, the disk has {free:,} free")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise InputError(f"{target}: write failed ({error}); nothing is left there") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reuse_freed_memory() -> None:
    """Let glibc keep what is freed: it would map every block anew, and new pages cost several times the copy into them.
    Elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**30)


def rows_per_block(rest: tuple[int, ...], dtype: torch.dtype) -> int:
    """Rows of BLOCK_BYTES; ``rest`` is the shape of one."""
    return max(1, BLOCK_BYTES // (prod(rest) * dtype.itemsize))


def common_dtype(dtypes: Iterator[torch.dtype]) -> torch.dtype:
    """One that holds the values of all."""
    common = next(dtypes)
    for dtype in dtypes:
        common = torch.promote_types(common, dtype)
    return common


def cast(part: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The values in another dtype. Raises InputError: a finite one becomes infinite."""
    if part.dtype == dtype:
        return part
    made = part.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(part.dtype).max and not torch.equal(made.isinf(), part.isinf()):
        largest = part[part.isfinite()].abs().max().item()
        raise InputError(
            f"{name}: {largest:.4g} is beyond {str(dtype).removeprefix('torch.')}, whose largest number is "
            f"{torch.finfo(dtype).max:.4g}; choose another --dtype"
        )
    return made


def make_plan(
    architecture: str,
    shapes: dict[str, tuple[int, ...]],
    dtypes: dict[str, torch.dtype],
    num_bytes: int,
    files: tuple[str, ...],
    target: Path,
) -> ConversionPlan:
    """The plan of a conversion into ``target``, whose disk is asked for its free bytes."""
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    return ConversionPlan(
        architecture=architecture,
        num_tensors=len(shapes),
        num_params=sum(prod(shape) for shape in shapes.values()),
        num_bytes=num_bytes,
        dtypes=tuple(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes.values()})),
        files=files,
        free_bytes=shutil.disk_usage(parent).free,
    )
