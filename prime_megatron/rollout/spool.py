"""The last weights that were sent to an engine, as safetensors files: what carries buckets to the engine's process, and
what a restarted engine is loaded from. It is one whole copy of the weights per replica."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prime_megatron.parallel.shards import ShardSlice, as_slices
from prime_megatron.rollout.live_weights import bit_sums
from prime_megatron.types import Bucket


class Spool:
    """Files of one update in a folder.

    Args:
        folder: made if needed, emptied of weights at every update.
        model_path: where config and tokenizer files come from (transport "disk"); None: weights alone.
    """

    def __init__(self, folder: Path, model_path: str | None) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self._place: dict[str, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if model_path is not None:
            for path in Path(model_path).iterdir():
                if path.is_file() and "safetensors" not in path.name and path.suffix not in (".bin", ".pt", ".gguf"):
                    shutil.copy(path, folder / path.name)

    def begin(self) -> None:
        """Forget the last update."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()
        self.files, self._place = [], {}

    def write(self, bucket: Bucket) -> Path:
        """Add a bucket; returns its file."""
        path = self.folder / f"model-{len(self.files):05d}.safetensors"
        save_file(
            {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in zip(bucket.names, bucket.tensors, strict=True)
            },
            path,
            metadata={"format": "pt"},
        )
        self.files.append(path)
        self._place |= dict.fromkeys(bucket.names, path)
        return path

    def read(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """A file's tensors, in the order of their names in it."""
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, safe_open is no mapping
                yield name, file.get_tensor(name)

    def bit_sums(self, pieces: Sequence[ShardSlice], dtype: torch.dtype) -> dict[str, int]:
        """What ``live_weights.bit_sums`` of an engine rank must be that is made of these pieces."""
        sums: dict[str, int] = {}
        for piece in pieces:
            with safe_open(self._place[piece.hf_name], framework="pt") as file:
                part = file.get_slice(piece.hf_name)[as_slices(piece.hf)].to(dtype)
            sums[piece.param] = _wrap(sums.get(piece.param, 0) + bit_sums([("", part)])[""])
        return sums

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _wrap(value: int) -> int:
    """Modulo 2**64, signed, as int64 sums are."""
    return (value + 2**63) % 2**64 - 2**63
