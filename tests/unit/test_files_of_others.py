"""No verb and no tool replaces what it did not write: files of others, links, pipes, devices, folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_megatron.cli.main import main
from prime_megatron.errors import InputError
from prime_megatron.rollout.recording import Recorder, check_record

TOOLS = Path(__file__).parents[2] / "tools"
ROW = json.dumps({"ability": "exact", "response": "<answer>7</answer>", "ground_truth": "7"}) + "\n"


def _link(path: Path) -> None:
    path.with_name("mine").write_text("mine")
    path.symlink_to(path.with_name("mine"))


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


ODD: dict[str, Callable[[Path], None]] = {"link": _link, "dangling": _dangling, "pipe": os.mkfifo, "folder": os.mkdir}


def state(path: Path) -> tuple[int, bytes]:
    """What kind of thing it is, and what lies where a link leads."""
    mine = path.with_name("mine")
    return os.lstat(path).st_mode, mine.read_bytes() if mine.exists() else b""


@pytest.mark.parametrize("kind", ODD)
def test_verify_replaces_regular_files_alone(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text(ROW)
    out = tmp_path / "out.jsonl"
    ODD[kind](out)
    before = state(out)
    assert main(["verify", str(tmp_path / "in.jsonl"), "--output", str(out), "--overwrite"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert state(out) == before and not (tmp_path / "nowhere").exists()


def test_verify_leaves_a_device_a_device(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(ROW)
    assert main(["verify", str(tmp_path / "in.jsonl"), "--output", "/dev/null", "--overwrite"]) == 2
    assert Path("/dev/null").is_char_device()


def slurm_config(tmp_path: Path) -> str:
    (tmp_path / "run.yaml").write_text("run: {output_dir: o, steps: 1}\nmodel: m\ndata: {train: [a.jsonl]}\n")
    return str(tmp_path / "run.yaml")


@pytest.mark.parametrize("suffix", [".sbatch", ".resolved.yaml"])
@pytest.mark.parametrize("kind", [*ODD, "own"])
def test_slurm_replaces_its_own_files_alone(kind: str, suffix: str, tmp_path: Path) -> None:
    """A job script of the user's has #SBATCH lines, too."""
    path = (tmp_path / "job.sbatch").with_suffix(suffix)
    command = ["slurm", slurm_config(tmp_path), "--output", str(tmp_path / "job.sbatch")]
    if kind == "own":
        path.write_text("#!/bin/sh\n#SBATCH --nodes=1\nsrun my_program\n")
        before = path.read_text()
        assert main(command) == 2
        assert path.read_text() == before
        path.unlink()
        assert main(command) == 0
        assert main(command) == 0, "its own"
        return
    ODD[kind](path)
    before_odd = state(path)
    assert main(command) == 2
    assert state(path) == before_odd
    assert [one.name for one in tmp_path.glob("job.*")] == [path.name], "half of it is written"


@pytest.mark.parametrize("kind", [*ODD, "data"])
def test_a_recording_replaces_recordings_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    if kind == "data":
        path.write_text(ROW)
    else:
        ODD[kind](path)
    before = os.lstat(path).st_mode, path.read_text() if kind == "data" else ""
    for use in (check_record, Recorder):
        with pytest.raises(InputError, match=r"rollout\.record: [^\n]*$"):
            use(str(path))
    assert before == (os.lstat(path).st_mode, path.read_text() if kind == "data" else "")
    check_record(None)
    check_record(str(tmp_path / "new"))
    recorder = Recorder(str(tmp_path / "new"))
    recorder.write(1, [])
    Recorder(str(tmp_path / "new")).restore(0)
    assert (tmp_path / "new").read_text() == ""


@pytest.mark.parametrize("kind", [*ODD, "own"])
def test_prepare_data_replaces_its_own_files_alone(kind: str, tmp_path: Path) -> None:
    problem = {"question": "What is 1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps(problem) + "\n")
    target = tmp_path / "target.jsonl"
    command = [sys.executable, str(TOOLS / "prepare_data.py"), str(tmp_path / "gsm8k.jsonl"), str(target)]
    if kind == "own":
        target.write_text(ROW)
        assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 2
        assert target.read_text() == ROW
        target.unlink()
        for _ in range(2):
            assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
        return
    ODD[kind](target)
    before = state(target)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert state(target) == before
