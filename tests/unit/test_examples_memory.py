"""Every shipped config against its own header: the GPUs that it names are those of its launch section, and it fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prime_megatron.cli.main import main
from prime_megatron.config.load import load_train_config
from prime_megatron.config.sizes import parse_size
from tests.support.public_models import make_folder

EXAMPLES = Path(__file__).parents[2] / "examples"
# What `prime-megatron slurm` writes beside a job script is the config of another file here.
YAML = (path for path in EXAMPLES.rglob("*.yaml") if not path.name.endswith(".resolved.yaml"))
CONFIGS = sorted(path for path in YAML if "models:" in path.read_text())
GPUS = re.compile(r"\b(\d+) nodes? of (\d+) GPUs? with (\d+) GB")
GPU_EXAMPLES = {
    "eurus2/prime.yaml",
    "qwen2.5_math_7b/prime.yaml",
    "qwen2.5_7b_one_gpu/prime.yaml",
    "qwen2.5_72b/prime.yaml",
    "qwen3_30b_a3b/prime.yaml",
    "slurm/run.yaml",
}

MADE = {"runs/eurus2_sft/model": "Eurus-2-7B-SFT"}
"""Folders that another example makes, and the model that lies there."""


def header_of(path: Path) -> str:
    lines = path.read_text().splitlines()
    count = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[:count])


def with_models(path: Path, where: Path) -> list[str]:
    """Overrides that put folders with just config.json in the place of the example's models."""
    models = load_train_config(str(path), []).models
    given = {"models.policy.path": models.policy.path, "models.prm.path": models.prm.path}
    names = {key: MADE.get(folder, Path(folder).name) for key, folder in given.items() if folder is not None}
    return [f"{key}={make_folder(where, name)}" for key, name in names.items()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_a_config_fits_the_gpus_of_its_header(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header, launch = header_of(path), load_train_config(str(path), []).launch
    name = path.relative_to(EXAMPLES).as_posix()
    if name not in GPU_EXAMPLES:
        assert GPUS.search(header) is None and launch.device_memory is None
        return
    found = GPUS.search(header)
    assert found is not None, header
    nodes, per_node, gigabytes = map(int, found.groups())
    assert (launch.nodes, launch.processes_per_node) == (nodes, per_node)
    assert launch.device_memory is not None
    stated = parse_size(launch.device_memory)
    # What a card reports lies between its size in 10^9 and in 2^30 bytes.
    assert stated is not None and gigabytes * 10**9 < stated <= gigabytes * 2**30
    overrides = with_models(path, tmp_path)
    for option in ([], ["--device-memory", f"{gigabytes}GiB"]):
        assert main(["validate", str(path), *overrides, *option]) == 0
        fits = re.search(r"^# fits: the ([\w ]+) needs most and leaves (\d+)% of", capsys.readouterr().out, re.M)
        assert fits is not None and int(fits[2]) >= 5, fits


def test_three_models_of_7b_on_one_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """30 bytes of host memory for each of 7.6e9 parameters; every phase leaves room, activations included."""
    path = EXAMPLES / "qwen2.5_7b_one_gpu/prime.yaml"
    assert main(["validate", str(path), *with_models(path, tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "# host memory of one rank: 212.78 GiB for models away from the device; while a checkpoint" in out
    phases = {
        name: (int(left), parts)
        for name, left, parts in re.findall(r"^#   ([\w ]+?) +[\d.]+ GiB, +(\d+)% left: (.*)", out, re.M)
    }
    assert set(phases) == {"start", "rollout", "score", "PRM update", "policy update", "reshard", "save"}
    assert all(left >= 15 for left, _ in phases.values())
    assert all("activations" in phases[name][1] for name in ("score", "PRM update", "policy update"))
    for less in (["parallel.offload=generation"], ["launch.host_memory=300GiB"]):
        assert main(["validate", str(path), *with_models(path, tmp_path), *less]) == 2


def test_one_node_of_the_slurm_example_fits_as_well(tmp_path: Path) -> None:
    path = EXAMPLES / "slurm/run.yaml"
    assert main(["validate", str(path), *with_models(path, tmp_path), "launch.nodes=1"]) == 0


BEFORE = """\
preset: original
run: {name: qwen2.5-math-7b, output_dir: runs/qwen2.5_math_7b, steps: 240}
models: {policy: {path: MODEL}, dtype: bfloat16}
data: {train: [train.parquet], eval: [validation.parquet], max_prompt_tokens: 1024}
rollout: {engine: sglang, tensor: 1, max_concurrent: 256, sglang: {memory_fraction: 0.7}}
parallel: {tensor: 2, sequence: true, distributed_optimizer: true}
packing: {max_tokens: 16384}
eval: {every: 16}
checkpoint: {every: 16, asynchronous: true}
launch: {processes_per_node: 8}
"""
"""The 7B example as it once was: for GPUs with 80 GB, with everything on the device."""


def test_the_7b_example_without_offload_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(BEFORE.replace("MODEL", make_folder(tmp_path, "Eurus-2-7B-SFT")))
    assert main(["validate", str(path), "--device-memory", "80GiB"]) == 2
    assert capsys.readouterr().err == (
        "error: --device-memory: the save needs 131.0 GiB of a GPU of 80.0 GiB, of which 72.2 can be filled; "
        "set parallel.offload=phases\n"
    )
    for changes in (["parallel.offload=phases"], ["parallel.offload=generation", "parallel.tensor=4"]):
        assert main(["validate", str(path), *changes, "--device-memory", "80GiB"]) == 0


def test_train_refuses_before_it_starts_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "qwen2.5_math_7b/prime.yaml"
    changes = [*with_models(path, tmp_path), "parallel.tensor=2", f"run.output_dir={tmp_path / 'out'}"]
    assert main(["train", str(path), *changes]) == 2
    err = capsys.readouterr().err
    assert "error: launch.device_memory: the PRM update needs 113.6 GiB" in err and "set parallel.tensor=4" in err
    assert not (tmp_path / "out").exists()
