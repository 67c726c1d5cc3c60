"""validate: the resolved config, the layout, the memory; and that it stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from prime_megatron.cli.main import main
from prime_megatron.cli.memory import frozen_memory, num_parameters, trained_memory
from prime_megatron.config import ParallelConfig
from prime_megatron.config.load import load_train_config
from prime_megatron.errors import InputError

TRAIN = """\
run: {output_dir: OUT, steps: 3}
models: {policy: {path: MODEL}}
data: {train: [DATA]}
"""
SFT = """\
run: {output_dir: OUT, steps: 3}
model: MODEL
data: {train: [DATA]}
"""
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 56, "vocab_size": 101,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> str:
    model = tmp_path / "model"
    Qwen2Config(**SIZES, tie_word_embeddings=True).save_pretrained(model)
    path = tmp_path / "run.yaml"
    path.write_text(TRAIN.replace("MODEL", str(model)).replace("OUT", str(tmp_path / "out")))
    return str(path)


def test_output_is_the_same_config_again(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", config, "run.seed=7", "rollout.samples_per_prompt=8"]) == 0
    again = tmp_path / "again.yaml"
    again.write_text(capsys.readouterr().out)
    expected = load_train_config(config, ["run.seed=7", "rollout.samples_per_prompt=8"])
    assert load_train_config(str(again), []) == expected
    assert expected.run.seed == 7


def test_layout_and_batch_are_worked_out(config: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", config, "parallel.tensor=2", "parallel.pipeline=3", "--processes", "24"]) == 0
    out = capsys.readouterr().out
    assert "# layout: 24 processes = data 4 x tensor 2 x pipeline 3 x context 1\n" in out
    assert "# step: 256 prompts x 4 responses = 1024 sequences, 1 policy updates; 3 steps\n" in out
    assert "# memory per rank" in out
    assert all(f"#   {role}" in out for role in ("policy", "PRM", "reference", "engine", "together"))


def test_memory_names_the_roles_that_the_algorithm_needs(config: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", config, "advantage.process_weight=0"]) == 0
    out = capsys.readouterr().out
    assert "#   PRM" not in out
    assert "#   reference" not in out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["run.stepz=3"], "steps"),
        (["parallel.tensor=2"], "does not divide"),
        (["rollout.samples_per_prompt=1"], "rollout.samples_per_prompt"),
    ],
)
def test_refusals_are_one_line_and_exit_code_2(
    config: str, overrides: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["validate", config, *overrides]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_supervised_config_is_told_by_its_model_key(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(SFT.replace("MODEL", str(tmp_path / "absent")))
    assert main(["validate", str(path)]) == 0
    out = capsys.readouterr().out
    assert "# layout: 1 processes = data 1" in out
    assert f"# memory: not estimated, no folder {tmp_path / 'absent'}\n" in out


def test_validate_needs_no_torch_and_writes_nothing(config: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import sys; from prime_megatron.cli.main import main; code = main(['validate', sys.argv[1]]); "
        "heavy = {'torch', 'transformers', 'megatron'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, config], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "hf",
    [
        Qwen2Config(**SIZES, tie_word_embeddings=True),
        Qwen2Config(**SIZES, tie_word_embeddings=False),
        LlamaConfig(**SIZES, head_dim=16),
        Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=5, moe_intermediate_size=24, decoder_sparse_step=1),
    ],
    ids=["qwen2-tied", "qwen2", "llama", "moe"],
)
def test_parameter_count_against_transformers(hf: object, tmp_path: Path) -> None:
    hf.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    assert num_parameters(str(tmp_path)) == matrices


def test_parameter_count_refuses_a_folder_without_sizes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        num_parameters(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(InputError, match="num_hidden_layers"):
        num_parameters(str(tmp_path))


def test_memory_follows_the_layout_and_the_dtype() -> None:
    layout = ParallelConfig(tensor=2, pipeline=2)
    memory = trained_memory(1000, layout, data_size=5, dtype="bfloat16")
    # 250 parameters a rank: bfloat16 weights, float32 gradients, (main weight + two moments) / 5.
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes) == (500.0, 1000.0, 600.0)
    plain = ParallelConfig(distributed_optimizer=False)
    memory = trained_memory(1000, plain, data_size=5, dtype="float32")
    assert (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes) == (4000.0, 4000.0, 8000.0)
    assert frozen_memory(1000, 4, "bfloat16").total_bytes == 500.0
