"""Who goes back into the queue, what an attempt notes, and SLURM's way to write a time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prime_megatron.slurm import attempt
from prime_megatron.slurm.duration import seconds_of
from prime_megatron.slurm.requeue import MAX_FAILURES, MAX_FRUITLESS, Ended, decide

STOPPED = Ended(
    code=85,
    warned="USR1",
    slurm_ends_it=False,
    ran_out=False,
    lost_node=False,
    progressed=True,
    fruitless=0,
    failures=0,
    may_requeue=True,
)


@pytest.mark.parametrize(
    ("changes", "requeue", "code", "words"),
    [
        ({}, True, 85, "saved; back into the queue"),
        ({"code": 0}, False, 0, "done"),
        ({"code": 2}, False, 2, "input"),
        ({"code": 86}, False, 86, "ended itself"),
        ({"code": 86, "may_requeue": False}, False, 0, "ended itself"),
        ({"may_requeue": False}, False, 85, "next job of the chain"),
        # Killed by the signal before it listened.
        ({"code": 138, "progressed": False, "fruitless": 1}, True, 85, "nothing newer had to be saved"),
        ({"code": 138, "warned": "", "progressed": False, "fruitless": 1}, False, 138, "not requeued"),
        # A cancel, and the end of the time without a warning.
        ({"warned": "TERM", "slurm_ends_it": True}, False, 85, "SLURM ends the job"),
        ({"warned": "TERM", "slurm_ends_it": True, "ran_out": True}, True, 85, "back into the queue"),
        ({"warned": "TERM"}, True, 85, "back into the queue"),
        # A lost node, or a run that fails after some progress, or without any.
        ({"code": 1, "warned": "", "failures": 1}, True, 1, "back into the queue"),
        ({"code": 137, "warned": "", "failures": MAX_FAILURES}, False, 137, "3 attempts in a row"),
        ({"code": 1, "warned": "", "progressed": False, "fruitless": 1}, False, 1, "without a checkpoint"),
        ({"code": 1, "warned": "", "progressed": False, "fruitless": 1, "lost_node": True}, True, 1, "back into"),
        ({"code": 1, "warned": "", "progressed": False, "fruitless": 3, "lost_node": True}, False, 1, "3 attempts"),
        ({"progressed": False, "fruitless": MAX_FRUITLESS - 1}, True, 85, "back into the queue"),
        ({"progressed": False, "fruitless": MAX_FRUITLESS}, False, 1, "3 attempts in a row ended without a newer"),
    ],
)  # fmt: skip
def test_policy(changes: dict[str, object], requeue: bool, code: int, words: str) -> None:
    verdict = decide(replace(STOPPED, **changes))  # type: ignore[arg-type]
    assert (verdict.requeue, verdict.code) == (requeue, code)
    assert words in verdict.text and "\n" not in verdict.text


RUNNING = "JobId=7 JobState=RUNNING RunTime=00:01:00 TimeLimit=00:20:00 X=1"


def one_attempt(
    output: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    saves: int = 0,
    job: str = "7",
    lost: bool = False,
) -> str:
    """What the script is told; the run saves this step."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
    monkeypatch.setenv("SLURM_JOB_ID", job)
    logs = output / "logs" / f"job-{job}-attempt-{number}"
    logs.mkdir(parents=True)
    assert attempt.begin(output, logs, steps=9, export=True) == "go"
    if saves:
        folder = output / "checkpoints" / f"step-{saves:08d}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()
    said = attempt.Said(RUNNING, "allocated\nallocated*" if lost else "allocated\nallocated")
    verdict = attempt.end(output, logs, code, "USR1" if code == 85 else "", said, may_requeue=True)
    return f"{verdict.requeue} {verdict.code}"


def test_attempts_are_counted_by_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    said = [one_attempt(output, number, monkeypatch, 85, saves) for number, saves in enumerate((0, 0, 1, 0, 0, 0))]
    assert said == ["True 85"] * 5 + ["False 1"]
    assert one_attempt(output, 0, monkeypatch, 85, job="8") == "True 85"
    assert one_attempt(output, 1, monkeypatch, 1, saves=2, job="8") == "True 1"
    (output / "checkpoints" / "step-00000009").mkdir()  # without its marker it is no checkpoint
    assert one_attempt(output, 2, monkeypatch, 1, job="8") == "False 1"
    assert one_attempt(output, 0, monkeypatch, 1, job="9", lost=True) == "True 1"
    rows = [json.loads(line) for line in (output / "logs" / "attempts.jsonl").read_text().splitlines()]
    assert [(row["job"], row["began_after"], row["ended_after"]) for row in rows][-4:] == [
        ("8", 1, 1), ("8", 1, 2), ("8", 2, 2), ("9", 2, 2),
    ]  # fmt: skip


def test_what_slurm_says_of_the_job() -> None:
    assert attempt.slurm_ends(RUNNING, "TERM") == (False, False)
    assert attempt.slurm_ends("JobState=COMPLETING RunTime=1-00:00:01 TimeLimit=1-00:00:00", "TERM") == (True, True)
    assert attempt.slurm_ends("JobState=COMPLETING RunTime=00:00:09 TimeLimit=UNLIMITED", "TERM") == (True, False)
    assert attempt.slurm_ends("", "TERM") == (True, False), "a cancel stays a cancel"
    assert attempt.slurm_ends("", "USR1") == (False, False)


def test_commands_of_the_job_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    output, logs = tmp_path / "out", tmp_path / "out" / "logs" / "a"
    logs.mkdir(parents=True)
    assert attempt.main(["begin", str(output), "--logs", str(logs), "--steps", "9"]) == 0
    assert capsys.readouterr().out == "go\n"
    assert attempt.main(["end", str(output), "--logs", str(logs), "--code", "85", "--job", RUNNING]) == 0
    assert capsys.readouterr().out.startswith("requeue 85 stopped")
    (output / ".prime-megatron-done").write_text('{"steps": 9, "exported": false}')
    for steps, export, said in (("9", "0", "done"), ("9", "1", "go"), ("10", "0", "go")):
        assert attempt.main(["begin", str(output), "--logs", str(logs), "--steps", steps, "--export", export]) == 0
        assert capsys.readouterr().out == f"{said}\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("5:30", 330), ("1:00:00", 3600), ("2-0", 172800), ("1-2:03", 93780), ("1-02:03:04", 93784),
     ("UNLIMITED", None), ("tomorrow", None), ("1:2:3:4", None)],
)  # fmt: skip
def test_times(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_the_end_of_an_attempt_is_answered_without_the_config() -> None:
    """SLURM leaves a cancelled job KillWait seconds, and a TERM may end the first answer."""
    code = "import sys, prime_megatron.slurm.attempt; print([m for m in ('torch', 'pydantic') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == "[]\n"
