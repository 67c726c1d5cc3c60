"""The last weights that were sent to an engine, as a Hugging Face folder: what the engine loads, also after a restart.
It is one whole copy of the weights per replica."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import save_file

from prime_megatron.types import Bucket


class WeightFolder:
    """Files of one update in a folder.

    Args:
        folder: made if needed, emptied of weights at every update.
        model_path: where config and tokenizer files come from; None: weights alone.
    """

    def __init__(self, folder: Path, model_path: str | None) -> None:
        self.folder = folder
        self.files: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)
        if model_path is not None:
            for path in Path(model_path).iterdir():
                if path.is_file() and "safetensors" not in path.name and path.suffix not in (".bin", ".pt", ".gguf"):
                    shutil.copy(path, folder / path.name)

    def begin(self) -> None:
        """Forget the last update."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()
        self.files = []

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
        return path

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
