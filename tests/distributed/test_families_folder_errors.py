"""Loading from and exporting to bad places: the same one-line error on every rank, nothing half-written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.errors import InputError
from tests.support import models as mcore_models
from tests.support.ranks import run_ranks


def _export_errors(folder: str, out: str) -> list[str]:
    from prime_megatron.mcore import weights

    topology, chunks = mcore_models.start({"tensor": 2}, folder)
    messages = []

    def attempt(target: Path) -> None:
        with pytest.raises(InputError) as error:
            weights.export_hf(chunks, target, topology, folder)
        messages.append(str(error.value))

    full = Path(out) / "full"
    full.mkdir(exist_ok=True)
    (full / "mine.txt").write_text("keep")
    attempt(full)
    assert (full / "mine.txt").read_text() == "keep"

    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=1000)  # type: ignore[assignment]
    attempt(Path(out) / "small_disk")
    shutil.disk_usage = usage

    write = weights.SafetensorsStream.write
    weights.SafetensorsStream.write = _fail_on_lm_head(write)  # type: ignore[method-assign]
    attempt(Path(out) / "broken_disk")
    weights.SafetensorsStream.write = write  # type: ignore[method-assign]

    weights.export_hf(chunks, Path(out) / "good", topology, folder, torch.bfloat16)
    return messages


def _fail_on_lm_head(write: Any) -> Any:
    def failing(self: Any, name: str, tensor: torch.Tensor) -> None:
        if name.startswith("model.layers.2"):
            raise OSError(28, "No space left on device")
        write(self, name, tensor)

    return failing


def test_export(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    mcore_models.make_model(tmp_path / "m", "qwen2")
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    out = tmp_path / "out"
    out.mkdir()
    one, two = run_ranks(_export_errors, 2, str(tmp_path / "m"), str(out))
    assert one == two
    assert "full: exists and is not empty" in one[0]
    assert "bytes, the disk has 1,000 free" in one[1]
    assert "No space left on device" in one[2]
    assert all("\n" not in message for message in one)
    assert sorted(path.name for path in out.iterdir()) == ["full", "good"]
    original, exported = load_file(tmp_path / "m" / "model.safetensors"), load_file(out / "good" / "model.safetensors")
    assert all(torch.equal(exported[name], original[name].bfloat16()) for name in original)
    assert '"dtype": "bfloat16"' in (out / "good" / "config.json").read_text()
    assert (out / "good" / "chat_template.jinja").read_text() == "{{ messages }}"


def _load(folder: str) -> str:
    with pytest.raises(InputError) as error:
        mcore_models.start({"pipeline": 2}, folder)
    return str(error.value)


def test_load_fails_alike_on_every_rank(tmp_path: Path) -> None:
    """Also on the ranks that hold nothing of the bad file: none is left waiting for the others."""
    mcore_models.make_model(tmp_path / "m", "qwen2", max_shard_size="20KB")
    last = sorted((tmp_path / "m").glob("model-*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-3])
    one, two = run_ranks(_load, 2, str(tmp_path / "m"))
    assert one == two
    assert f"{last}: not a whole safetensors file" in one
