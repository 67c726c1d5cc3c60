"""HF folder -> Megatron checkpoint -> HF folder: bit for bit, across layouts, and every bad input one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prime_megatron.convert import target as convert
from prime_megatron.convert.to_hf import MegatronToHf
from prime_megatron.convert.to_megatron import HfToMegatron
from prime_megatron.errors import InputError
from tests.support import models as mcore_models
from tests.support.ranks import run_ranks

ROOT = Path(__file__).parents[2]
MOE = [name for name in mcore_models.FAMILIES if "moe" in name or name == "mixtral"]
TWO_RANKS: dict[str, list[dict[str, Any]]] = {
    "qwen2": [{"tensor": 2}, {"pipeline": 2, "pipeline_layers": (3, 1)}, {"pipeline": 2, "virtual_pipeline": 2}],
    "qwen2_tied": [{"tensor": 2, "sequence": True}, {"pipeline": 2}],
    "qwen3_odd": [{"tensor": 2}],
    "qwen3_moe": [{"expert": 2}, {"tensor": 2, "sequence": True}, {"pipeline": 2}],
    "mixtral": [{"expert": 2, "tensor": 2, "sequence": True}],
}


def _ignore(num_bytes: int) -> None:
    """Progress that no one watches."""


def to_megatron(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    conversion = HfToMegatron(source, target, dtype)
    done: list[int] = []
    conversion.run(done.append)
    assert sum(done) == conversion.plan().num_bytes
    conversion.verify(_ignore)


def to_hf(source: Path, target: Path, dtype: torch.dtype | None = None, template: Path | None = None) -> None:
    conversion = MegatronToHf(source, target, dtype, template)
    done: list[int] = []
    conversion.run(done.append)
    assert sum(done) == conversion.plan().num_bytes
    conversion.verify(_ignore)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same(one: Path, two: Path) -> None:
    left, right = weights(one), weights(two)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("name", mcore_models.FAMILIES)
def test_round_trip_is_exact(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of a few rows, from a sharded source."""
    monkeypatch.setattr(convert, "BLOCK_BYTES", 1000)
    source = tmp_path / "model"
    mcore_models.make_model(source, name, max_shard_size="60KB")
    assert (source / "model.safetensors.index.json").exists()
    (source / "tokenizer.json").write_text("{}")
    to_megatron(source, tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "again")
    same(source, tmp_path / "again")
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (source / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "checkpoint", "model"]


def test_dtypes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    mcore_models.make_model(tmp_path / "model", "qwen2_tied")
    to_megatron(tmp_path / "model", tmp_path / "half", torch.bfloat16)
    to_hf(tmp_path / "half", tmp_path / "out", torch.float32)
    original, out = weights(tmp_path / "model"), weights(tmp_path / "out")
    assert all(torch.equal(out[name], tensor.bfloat16().float()) for name, tensor in original.items())
    assert json.loads((tmp_path / "half" / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def _loaded_equals_load_hf(folder: str, checkpoint: str, layouts: list[dict[str, Any]]) -> None:
    """Megatron's own loader, into models of each layout that were filled with something else."""
    from megatron.core import dist_checkpointing

    from prime_megatron.mcore.model import unwrap

    for layout in layouts:
        _, chunks = mcore_models.start(layout, folder)
        expected = [{n: p.detach().clone() for n, p in unwrap(c).named_parameters()} for c in chunks]
        for chunk in chunks:
            for param in chunk.parameters():
                param.data.fill_(7.0)
        sharded = {f"chunk{i}": unwrap(chunk).sharded_state_dict() for i, chunk in enumerate(chunks)}
        loaded = dist_checkpointing.load(sharded, checkpoint, validate_access_integrity=False)
        for index, chunk in enumerate(chunks):
            unwrap(chunk).load_state_dict(loaded[f"chunk{index}"], strict=False)
            for name, param in unwrap(chunk).named_parameters():
                assert torch.equal(param, expected[index][name]), (layout, name)
        mcore_models.restart()


@pytest.mark.parametrize("name", TWO_RANKS)
def test_megatron_loads_it_at_any_layout(tmp_path: Path, name: str) -> None:
    mcore_models.make_model(tmp_path / "model", name)
    to_megatron(tmp_path / "model", tmp_path / "checkpoint")
    folder, checkpoint = str(tmp_path / "model"), str(tmp_path / "checkpoint")
    run_ranks(_loaded_equals_load_hf, 1, folder, checkpoint, [{}])
    run_ranks(_loaded_equals_load_hf, 2, folder, checkpoint, TWO_RANKS[name])


def _save_role(folder: str, out: str, layout: dict[str, Any]) -> None:
    """As a run saves a role."""
    from prime_megatron.config import OptimizerConfig, ParallelConfig
    from prime_megatron.mcore.checkpoint import RoleShards
    from prime_megatron.mcore.initialize import start_megatron
    from prime_megatron.mcore.role import Role
    from prime_megatron.parallel.collectives import gather_all

    config = ParallelConfig(**layout)
    topology = start_megatron(config, seed=1, backend="gloo", timeout_s=60)
    role = Role("policy", folder, topology, config, dtype=torch.float32, optimizer=OptimizerConfig())
    if topology.rank == 0:
        Path(out).mkdir()
    torch.distributed.barrier()
    write = RoleShards(role).plan(Path(out))
    write.stage(leaves=False)
    written = gather_all(write.write())
    if topology.rank == 0:
        write.finish(written)
    torch.distributed.barrier()


@pytest.mark.parametrize(("name", "layout"), [(n, layouts[0]) for n, layouts in TWO_RANKS.items()])
def test_saved_at_one_layout_exported_from_another(tmp_path: Path, name: str, layout: dict[str, Any]) -> None:
    mcore_models.make_model(tmp_path / "model", name)
    run_ranks(_save_role, 2, str(tmp_path / "model"), str(tmp_path / "saved"), layout)
    to_hf(tmp_path / "saved", tmp_path / "again", template=tmp_path / "model")
    same(tmp_path / "model", tmp_path / "again")


def test_a_critic_keeps_its_head(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors | {"score.weight": torch.randn(1, 32)}, path, metadata={"format": "pt"})
    to_megatron(tmp_path / "model", tmp_path / "checkpoint")
    to_hf(tmp_path / "checkpoint", tmp_path / "again")
    same(tmp_path / "model", tmp_path / "again")


def _sharded(folder: Path) -> tuple[Path, Path]:
    """(index, first shard) of a sharded model."""
    mcore_models.make_model(folder, "qwen2", max_shard_size="60KB")
    return folder / "model.safetensors.index.json", sorted(folder.glob("model-*.safetensors"))[0]


def _missing_shard(folder: Path) -> str:
    _sharded(folder)[1].unlink()
    return "missing"


def _truncated(folder: Path) -> str:
    shard = _sharded(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    return "not a whole safetensors file"


def _index_lies(folder: Path) -> str:
    _, shard = _sharded(folder)
    tensors = load_file(shard)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, shard, metadata={"format": "pt"})
    return "is missing, though"


def _config_disagrees(folder: Path) -> str:
    _sharded(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    return "config.json says"


def _unknown(folder: Path) -> str:
    _sharded(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPT2LMHeadModel"]}))
    return "known: "


@pytest.mark.parametrize("damage", [_missing_shard, _truncated, _index_lies, _config_disagrees, _unknown])
def test_bad_folders_are_refused(tmp_path: Path, damage: Any) -> None:
    expected = damage(tmp_path / "model")
    with pytest.raises(InputError, match=expected) as caught:
        HfToMegatron(tmp_path / "model", tmp_path / "out", None).run(_ignore)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    to_megatron(tmp_path / "model", tmp_path / "checkpoint")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for conversion in (
        HfToMegatron(tmp_path / "model", tmp_path / "out", None),
        MegatronToHf(tmp_path / "checkpoint", tmp_path / "out", None, None),
    ):
        with pytest.raises(InputError, match="the disk has 1,000 free"):
            conversion.run(_ignore)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    to_megatron(tmp_path / "model", tmp_path / "checkpoint")

    def full(num_bytes: int) -> None:
        raise OSError(28, "No space left on device")

    for conversion in (
        HfToMegatron(tmp_path / "model", tmp_path / "out", None),
        MegatronToHf(tmp_path / "checkpoint", tmp_path / "out", None, None),
    ):
        with pytest.raises(InputError, match="No space left"):
            conversion.run(full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "model"]


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    to_megatron(tmp_path / "model", tmp_path / "checkpoint")
    data = tmp_path / "checkpoint" / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(InputError, match="missing or damaged"):
        MegatronToHf(tmp_path / "checkpoint", tmp_path / "out", None, None).run(_ignore)
    assert not (tmp_path / "out").exists()
    (tmp_path / "checkpoint" / ".metadata").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="no place in an index"):
        MegatronToHf(tmp_path / "checkpoint", tmp_path / "out", None, None)
    with pytest.raises(InputError, match=r"no \.metadata"):
        MegatronToHf(tmp_path / "model", tmp_path / "out", None, tmp_path / "model")


def test_verify_finds_a_changed_value(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")
    conversion = HfToMegatron(tmp_path / "model", tmp_path / "checkpoint", None)
    conversion.run(_ignore)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.self_attn.k_proj.weight"][3, 4] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"checkpoint: model.layers.2.self_attn.k_proj.weight differs"):
        conversion.verify(_ignore)


def test_command_line(tmp_path: Path) -> None:
    mcore_models.make_model(tmp_path / "model", "qwen2")

    def call(tool: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"tools/{tool}.py", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    model, checkpoint = str(tmp_path / "model"), str(tmp_path / "checkpoint")
    dry = call("convert_hf_to_megatron", model, checkpoint, "--dry-run")
    assert dry.returncode == 0 and "Qwen2ForCausalLM" in dry.stdout and not Path(checkpoint).exists()
    done = call("convert_hf_to_megatron", model, checkpoint, "--verify", "--dtype", "bfloat16")
    assert done.returncode == 0 and "(100 %)" in done.stderr and "verified" in done.stderr
    back = call("convert_megatron_to_hf", checkpoint, str(tmp_path / "again"))
    assert back.returncode == 0 and (tmp_path / "again" / "config.json").exists()
    again = call("convert_megatron_to_hf", checkpoint, str(tmp_path / "again"))
    assert again.returncode == 2
    errors = [line for line in again.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "not empty" in errors[0] and "Traceback" not in again.stderr
