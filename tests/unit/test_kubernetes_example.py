"""examples/kubernetes: its command is a run that can start, its script hands signals and exit codes on."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from prime_megatron.cli.main import main
from prime_megatron.config.load import load_train_config
from tests.support.public_models import make_folder
from tools.reference_verbs import parser_of

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "examples" / "kubernetes" / "pytorchjob.yaml"
PLACE = {"MASTER_ADDR": "prime-master-0", "MASTER_PORT": "23456", "RANK": "1", "WORLD_SIZE": "2"}
"""What the operator sets in the second pod."""
STAND_IN = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" > words
env > environment
trap 'echo saved > saved; exit 85' TERM
if [ "$CODE" = wait ]; then touch started; for _ in $(seq 200); do sleep 0.05; done; exit 3; fi
exit "$CODE"
"""


@pytest.fixture(scope="module")
def replicas() -> dict[str, Any]:
    job = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    return job["spec"]["pytorchReplicaSpecs"]


@pytest.fixture(scope="module")
def script(replicas: dict[str, Any]) -> str:
    """The same in both kinds of pod, whose container has the name that the operator looks for."""
    containers = [replicas[kind]["template"]["spec"]["containers"] for kind in ("Master", "Worker")]
    assert containers[0] == containers[1]
    (container,) = containers[0]
    assert container["name"] == "pytorch"
    assert container["command"] == ["bash", "-c"]
    (text,) = container["args"]
    return text


def words_of(script: str) -> list[str]:
    (command,) = re.findall(r"^prime-megatron .*?(?= &$)", script.replace("\\\n", " "), re.M)
    return shlex.split(command.replace("$endpoint", "host:29500").replace("$node", "0"))


def test_pods_are_the_nodes_of_the_config(
    replicas: dict[str, Any], script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args, rest = parser_of("train").parse_known_args(words_of(script)[2:])
    overrides = [*args.overrides, *rest]
    assert all("=" in word and not word.startswith("-") for word in overrides)
    launch = load_train_config(str(ROOT / args.config), overrides).launch
    assert sum(replica["replicas"] for replica in replicas.values()) == launch.nodes == 2
    (container,) = replicas["Master"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == launch.processes_per_node
    model = f"models.policy.path={make_folder(tmp_path, 'Qwen2.5-Math-7B')}"
    assert main(["validate", str(ROOT / args.config), *overrides, model]) == 0
    assert "# fits: " in capsys.readouterr().out


def test_a_stop_has_time_to_save(replicas: dict[str, Any], script: str) -> None:
    config = load_train_config(str(ROOT / "examples" / "slurm" / "run.yaml"), [])
    for replica in replicas.values():
        assert replica["restartPolicy"] == "ExitCode"
        assert replica["template"]["spec"]["terminationGracePeriodSeconds"] > config.checkpoint.grace_s


def start(script: str, folder: Path, code: str) -> subprocess.Popen[bytes]:
    stand_in = folder / "prime-megatron"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    environment = {**PLACE, "CODE": code, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", "-c", script], cwd=folder, env=environment)


@pytest.mark.parametrize(("code", "seen"), [("0", 0), ("2", 2), ("86", 86), ("1", 129), ("85", 213)])
def test_exit_codes_say_whether_to_start_again(code: str, seen: int, script: str, tmp_path: Path) -> None:
    assert start(script, tmp_path, code).wait(timeout=60) == seen
    words = (tmp_path / "words").read_text().split()
    assert words[words.index("--rdzv-endpoint") + 1] == "prime-master-0:23456"
    assert words[words.index("--node-rank") + 1] == "1"
    # A RANK would make the command itself one of the ranks.
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert names & {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} == set()


def test_a_drained_node_saves_before_it_ends(script: str, tmp_path: Path) -> None:
    shell = start(script, tmp_path, "wait")
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shell.send_signal(signal.SIGTERM)
    assert shell.wait(timeout=60) == 213
    assert (tmp_path / "saved").exists()
