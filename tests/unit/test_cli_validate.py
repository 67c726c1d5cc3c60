"""validate: the resolved config, the layout, the memory; and that it stays light."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3MoeConfig

from prime_megatron.cli.main import main
from prime_megatron.config.load import load_train_config
from prime_megatron.families.count import num_matmul_parameters, num_parameters
from prime_megatron.families.read import read_config

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
    hf = Qwen2Config(**SIZES, tie_word_embeddings=True, architectures=["Qwen2ForCausalLM"])
    hf.save_pretrained(model)
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
    assert "# step: 256 prompts x 4 responses = 1024 sequences, 1 policy updates, 1 PRM updates; 3 steps\n" in out
    assert all(f"#   {role} " in out for role in ("policy", "prm", "reference"))
    phases = ("rollout", "score", "PRM update", "policy update", "reshard", "save")
    assert all(f"#   {phase} " in out for phase in phases)


def test_memory_names_the_roles_that_the_algorithm_needs(config: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", config, "advantage.process_weight=0"]) == 0
    out = capsys.readouterr().out
    assert "#   prm" not in out and "PRM update" not in out
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


def test_validate_needs_no_torch_where_no_model_is_and_writes_nothing(config: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import sys; from prime_megatron.cli.main import main; code = main(['validate', sys.argv[1]]); "
        "heavy = {'torch', 'transformers', 'megatron'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, config], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "warning: data.train: DATA is not on this machine: not checked\n")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "hf",
    [
        Qwen2Config(**SIZES, tie_word_embeddings=True),
        Qwen2Config(**SIZES, tie_word_embeddings=False),
        LlamaConfig(**SIZES, head_dim=16),
        Qwen3MoeConfig(
            **SIZES, head_dim=8, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1
        ),
    ],
    ids=["qwen2-tied", "qwen2", "llama", "moe"],
)
def test_parameter_counts_against_transformers(hf: PretrainedConfig, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf)
    hf.architectures = [type(model).__name__]
    hf.save_pretrained(tmp_path)
    family = read_config(tmp_path)
    named = dict(model.named_parameters())
    assert num_parameters(family) == sum(param.numel() for param in named.values())
    matrices = {name: param.numel() for name, param in named.items() if param.ndim > 1 and "embed" not in name}
    if "lm_head.weight" not in matrices:
        matrices["lm_head.weight"] = SIZES["vocab_size"] * SIZES["hidden_size"]
    if family.experts:
        active = family.experts_per_token / family.experts
        matrices |= {name: int(size * active) for name, size in matrices.items() if ".experts." in name}
    assert num_matmul_parameters(family) == sum(matrices.values())


def test_an_unreadable_model_is_refused(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})
    )
    assert main(["validate", config]) == 2
    err = capsys.readouterr().err
    assert "config.json: key " in err and err.count("\n") == 1


@pytest.mark.parametrize("size", ["80", "80 gib", "-80GiB", "0GiB", "80GiB of it", "8e1GiB", "80Gb"])
def test_device_memory_needs_a_unit(size: str, config: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", config, f"--device-memory={size}"]) == 2
    assert f"--device-memory: expected a size with its unit, such as 80GiB, 79.6GiB or 80GB, got {size!r}" in (
        capsys.readouterr().err
    )
    assert main(["validate", config, f"launch.device_memory='{size}'"]) == 2
    assert "launch.device_memory: expected a size with its unit, such as 80GiB" in capsys.readouterr().err


def test_the_option_wins_over_the_key(config: str, capsys: pytest.CaptureFixture) -> None:
    packed = ["packing.max_tokens=4096", "launch.device_memory=4.1GiB"]
    assert main(["validate", config, *packed]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: launch.device_memory: the ") and err.count("\n") == 1
    assert main(["validate", config, *packed, "--device-memory", "80GiB"]) == 0
    assert "# fits: the save needs most and leaves 45% of 76.00 GiB (--device-memory 80.00 GiB less" in (
        capsys.readouterr().out
    )


def test_how_prompts_are_drawn_is_said(config: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", config]) == 0
    assert "# prompts:" not in capsys.readouterr().out
    assert main(["validate", config, "data.draw=teaching", "data.teaching.rest_steps=20"]) == 0
    assert (
        "# prompts: drawn by p (1 - p) of their past accuracy p, at least 0.05; one that is solved or hopeless rests "
        "20 steps\n"
    ) in capsys.readouterr().out


def test_what_a_supervised_run_learns_and_measures_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(SFT.replace("MODEL", str(tmp_path / "absent")))
    assert main(["validate", str(path)]) == 0
    assert "# 3 steps of 96 rows, the last answer of a chat learned\n" in capsys.readouterr().out
    more = ["run.steps=0", "run.epochs=2", "data.answers=all", "data.held_out_share=0.02", "eval_every=50"]
    assert main(["validate", str(path), *more]) == 0
    assert (
        "# 2 epochs, each in the steps that its rows make of 96 rows, every answer of a chat learned; loss and "
        "perplexity on 2.0% of the rows before the first step, every 50 steps and after the last one\n"
    ) in capsys.readouterr().out
    assert main(["validate", str(path), "data.held_out=[held.jsonl]"]) == 0
    said = capsys.readouterr()
    assert "loss and perplexity on held.jsonl" in said.out
    assert "warning: data.held_out: held.jsonl is not on this machine: not checked" in said.err


def test_a_supervised_run_is_counted_and_refused(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(SFT.replace("MODEL", str(tmp_path / "model")))
    assert main(["validate", str(path), "--device-memory", "80GB"]) == 0
    out = capsys.readouterr().out
    assert "#   update " in out and "#   save " in out and "rollout" not in out
    assert main(["validate", str(path), "--device-memory", "4.1GiB"]) == 2
    assert "the update needs " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "layout", "word"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "", "rope scaling 'dynamic' is not supported"),
        ({"use_cache": None}, "", "use_cache = null"),
        ({"rms_norm_eps": 1e-6, "eos_token_id": [None]}, "", "eos_token_id = [None] is not a token id"),
        ({"intermediate_size": 57}, "parallel.tensor=2", "parallel.tensor 2 does not divide the model's 57 ffn"),
    ],
)
def test_what_train_refuses_about_a_folder_is_refused(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture, change: dict, layout: str, word: str
) -> None:
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    options = [layout, "--processes", "2"] if layout else []
    assert main(["validate", config, *options]) == 2
    err = capsys.readouterr().err
    assert word in err and err.count("\n") == 1


def test_validate_reads_the_weights_headers(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / "model" / "model.safetensors")
    assert main(["validate", config]) == 2
    assert "tensor model.embed_tokens.weight is missing" in capsys.readouterr().err


def test_validate_asks_transformers(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever transformers would read otherwise, in a family that is added later, too."""
    from prime_megatron.run import check_models

    read = check_models.read_config
    monkeypatch.setattr(
        check_models, "read_config", lambda *args, **options: replace(read(*args, **options), rope_theta=7.0)
    )
    assert main(["validate", config]) == 2
    assert "rope_theta is 7.0 for the trainer, 10000.0 for transformers" in capsys.readouterr().err
