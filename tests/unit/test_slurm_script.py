"""Job scripts: rendered from a config, free of shell mistakes, and right about the number of nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prime_megatron.cli.main import main

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "slurm"
SCRIPTS = sorted([*EXAMPLES.glob("*.sbatch"), *EXAMPLES.glob("*.sh")])
RUN = "examples/slurm/run.yaml"


def rendered(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["slurm", RUN, "--dry-run", *options]) == 0
    return capsys.readouterr().out


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
    assert (EXAMPLES / f"{name}.sbatch").read_text() == rendered(capsys, *options)


def test_directives_come_from_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    text = rendered(capsys, "launch.nodes=3", "launch.processes_per_node=4", "checkpoint.grace_s=600", "run.name=x",
                    "checkpoint.signal=USR2", "--partition", "gpu", "--account", "me", "--time", "1:00:00")  # fmt: skip
    for line in ("--job-name=x", "--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=4", "--signal=B:USR2@780",
                 "--open-mode=append", "--requeue", "--partition=gpu", "--account=me", "--time=1:00:00"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "STOP_SIGNAL=USR2\n" in text and "REQUEUE=1\n" in text
    assert "launch.nodes=3 launch.processes_per_node=4 checkpoint.grace_s=600" in text


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
    assert main(["slurm", str(config), "--output", str(config)]) == 2
    assert "is no job script" in capsys.readouterr().err


def stand_ins(folder: Path, hosts: int) -> dict[str, str]:
    """An environment with a scontrol that knows so many nodes and an srun that only notes its arguments."""
    folder.mkdir()
    (folder / "scontrol").write_text(f"#!/bin/bash\nfor ((i = 1; i <= {hosts}; i++)); do echo node$i; done\n")
    (folder / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >> {folder}/srun.log\n')
    for name in ("scontrol", "srun"):
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "any"}


@pytest.mark.parametrize("nodes", [1, 2, 64])
def test_nodes_are_counted(nodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (f"launch.nodes={nodes}", f"run.output_dir={tmp_path / 'out'}")
    script = tmp_path / "job.sbatch"
    script.write_text(rendered(capsys, *options))
    assert f"#SBATCH --nodes={nodes}\n" in script.read_text()
    environment = stand_ins(tmp_path / "bin", nodes)
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check, run = (tmp_path / "bin" / "srun.log").read_text().split("node_check 8 ")[0], done.stdout
    assert f"--nodes={nodes} --ntasks={nodes} --ntasks-per-node=1" in check
    assert "nodes meet at node1:20007" in run
    environment = stand_ins(tmp_path / "wrong", nodes + 1)
    refused = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"the job has {nodes + 1} nodes and the config asks for {nodes}" in refused.stderr
    assert not (tmp_path / "wrong" / "srun.log").exists()


def test_a_chain(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/log\nwc -l < {tmp_path}/log\n')
    sbatch.chmod(0o755)
    job = tmp_path / "job.sbatch"
    job.touch()
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([str(EXAMPLES / "chain.sh"), "3", str(job), "--qos=x"], env=environment, check=True)
    first, *later = (tmp_path / "log").read_text().splitlines()
    assert first == f"--parsable --qos=x {job}"
    assert later == [f"--parsable --dependency=afternotok:{i} --kill-on-invalid-dep=yes --qos=x {job}" for i in (1, 2)]
    refused = subprocess.run([str(EXAMPLES / "chain.sh"), "0", str(job)], capture_output=True, check=False)
    assert refused.returncode == 2
