"""Job scripts: rendered from a config, free of shell mistakes, and right about the number of nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prime_megatron.cli.main import main
from prime_megatron.config.load import load_sft_config, load_train_config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "slurm"
SCRIPTS = sorted([*EXAMPLES.glob("*.sbatch"), *EXAMPLES.glob("*.sh")])
RUN = "examples/slurm/run.yaml"


def rendered(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["slurm", RUN, "--dry-run", *options]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line of an error."""
    assert main(["slurm", RUN, "--dry-run", *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH ")]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck is not None, "shellcheck is not installed: pip install -r requirements/dev.txt"
    checked = subprocess.run([shellcheck, str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(("name", "options"), [("one_node", ["launch.nodes=1"]), ("many_nodes", [])])
def test_examples_are_what_the_command_writes(
    name: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"examples/slurm/{name}.sbatch"
    assert (ROOT / output).read_text() == rendered(capsys, *options, "--output", output, "--python", "python")
    resolved = (EXAMPLES / f"{name}.resolved.yaml").read_text()
    assert load_train_config(RUN, options) == load_train_config(str(EXAMPLES / f"{name}.resolved.yaml"), [])
    assert resolved.startswith("# What the job script beside this file runs")


def test_directives_come_from_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, "launch.nodes=3", "launch.processes_per_node=4", "checkpoint.grace_s=600", "run.name=x",
                    "checkpoint.signal=USR2", "--partition", "gpu", "--account", "me", "--time", "1:00:00")  # fmt: skip
    assert directives(text) == [
        "job-name=x", "nodes=3", "ntasks-per-node=1", "gpus-per-node=4", "exclusive", "mem=0", "time=1:00:00",
        "requeue", "dependency=singleton", "signal=B:USR2@780", "open-mode=append", "output=x-%j.log", "partition=gpu",
        "account=me",
    ]  # fmt: skip
    assert "STOP_SIGNAL=USR2\n" in text and "REQUEUE=1\n" in text and "STEPS=500\n" in text
    assert (
        f'PYTHON={sys.executable}\nCOMMAND=("$PYTHON" -m prime_megatron train examples/slurm/run.resolved.yaml)' in text
    )


def test_any_option_of_sbatch(capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(
        capsys, "--sbatch", "qos=long", "--sbatch=comment=two words", "--sbatch", "mem=10G", "--sbatch", "nice"
    )
    lines = directives(text)
    assert {"qos=long", 'comment="two words"', "mem=10G", "nice"} < set(lines) and "mem=0" not in lines
    assert "--warning" in refused(capsys, "--sbatch", "signal=TERM@60")
    assert "launch.nodes" in refused(capsys, "--sbatch", "nodes=3")
    assert "line break" in refused(capsys, "--sbatch", "comment=a\nb")


def test_no_name_becomes_a_line_or_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for name, safe in (
        ("my run", "my-run"),
        ("exp/a%j", "exp-a-j"),
        ("a\n#SBATCH --nodes=99", "a-SBATCH---nodes=99"),
        ("///", "prime"),
    ):
        lines = directives(rendered(capsys, f"run.name={json.dumps(name)}"))
        assert f"job-name={safe}" in lines and f"output={safe}-%j.log" in lines
        assert [line for line in lines if line.startswith("nodes=")] == ["nodes=8"]


def test_warnings_fit_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert "signal=B:USR1@150" in directives(rendered(capsys, "--warning", "150", "--time", "5"))
    assert "300 s are not longer than the warning 300 s" in refused(capsys, "--time", "5")
    assert "above checkpoint.grace_s 120" in refused(capsys, "--warning", "120")
    assert "is no time" in refused(capsys, "--time", "tomorrow")
    assert "time=UNLIMITED" in directives(rendered(capsys, "--time", "UNLIMITED"))


def test_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, "--gpus-per-node", "h100:8")
    assert "gpus-per-node=h100:8" in directives(text) and "GPUS_PER_NODE=8\n" in text
    assert "every process takes a GPU" in refused(capsys, "--gpus-per-node", "2")
    assert "TYPE:N" in refused(capsys, "--gpus-per-node", "many")


def test_setup_lines_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "setup() {\nmodule load cuda\n}\n" in rendered(capsys, "--setup", "module load cuda")
    (tmp_path / "env.sh").write_text("source venv/bin/activate\nexport A=1\n")
    text = rendered(capsys, "--setup", str(tmp_path / "env.sh"), "--python", "python3")
    assert "setup() {\nsource venv/bin/activate\nexport A=1\n}\n" in text and "PYTHON=python3\n" in text


def test_supervised_runs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "sft.yaml"
    shutil.copy("examples/quickstart/sft.yaml", config)
    assert main(["slurm", str(config), "--gpus-per-node", "0"]) == 0
    text = (tmp_path / "sft.sbatch").read_text()
    assert f'COMMAND=("$PYTHON" -m prime_megatron sft {tmp_path}/sft.resolved.yaml)' in text and "STEPS=500\n" in text
    assert load_sft_config(str(tmp_path / "sft.resolved.yaml"), []) == load_sft_config(str(config), [])


def test_no_requeue_and_no_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, "--no-requeue", "--gpus-per-node", "0")
    assert "#SBATCH --no-requeue\n" in text and "REQUEUE=0\n" in text
    assert "gpus-per-node" not in text.split("set -uo")[0] and "GPUS_PER_NODE=0\n" in text


def test_container_settings_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, "--container-image", "a b.sqsh", "--container-mounts", "/x:/x,/y:/y")
    assert "CONTAINER_IMAGE='a b.sqsh'\n" in text and "CONTAINER_MOUNTS=/x:/x,/y:/y\n" in text


def test_writes_beside_the_config_and_spares_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "my.yaml"
    shutil.copy(RUN, config)
    assert main(["slurm", str(config)]) == 0
    assert "#SBATCH --nodes=8" in (tmp_path / "my.sbatch").read_text()
    assert "for a run on CPUs give --gpus-per-node 0" in capsys.readouterr().out
    assert main(["slurm", str(config), "--output", str(config)]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    (tmp_path / "own.resolved.yaml").write_text("mine: 1")
    assert main(["slurm", str(config), "--output", str(tmp_path / "own.sbatch")]) == 2
    assert (tmp_path / "own.resolved.yaml").read_text() == "mine: 1"


def test_asks_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    options = ["slurm", RUN, "--check", "--output", str(tmp_path / "a b.sbatch")]
    assert main(options) == 2
    assert "no sbatch here" in capsys.readouterr().err
    (tmp_path / "sbatch").write_text('#!/bin/bash\necho "sbatch: $@: Job 5 to start" >&2\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert main(options) == 0
    said = capsys.readouterr().out
    assert f"sbatch: --test-only {tmp_path}/a b.sbatch: Job 5 to start" in said
    assert f"submit it with: sbatch '{tmp_path}/a b.sbatch'" in said
