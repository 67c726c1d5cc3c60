"""`prime-megatron watch`: a run that runs, has finished, is dead, has not begun; odd folders; odd terminals."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli.main import main
from prime_megatron.metrics.jsonl import format_line
from prime_megatron.run.lock import LOCK_FILE, PATIENCE_S, Owner
from prime_megatron.run.output_dir import DONE_FILE
from prime_megatron.watch.frame import frame
from prime_megatron.watch.life import Life, LifeWatch, State
from prime_megatron.watch.standing import read_standing
from prime_megatron.watch.tail import last_rows, number

ROOT = Path(__file__).parents[2]
COLUMNS = {"rollout/outcome": "outcome", "eval/accuracy": "eval", "policy/loss": "loss"}


def metrics(step: int, **more: Any) -> str:
    values = {
        "rollout/outcome": 0.5, "policy/loss": 0.25, "time/step_s": 10.0, "time/rollout_s": 6.0, "time/policy_s": 3.0,
        "time/bound_stage": "rollout", "time/bound_share": 0.6, "time/bound_lead_s": 3.0,
    }  # fmt: skip
    return format_line(step, values | more)


def sample(step: int, response: str) -> str:
    row = {"kind": "trained", "response": response, "outcome": 1.0, "verdict": "correct", "token_ids": [1, 2]}
    return format_line(step, row)


def own(folder: Path, **changes: Any) -> None:
    (folder / LOCK_FILE).write_text(json.dumps(asdict(replace(Owner.this_process(), **changes))))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 steps that is in its fourth; this process owns it."""
    own(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(
        format_line(0, {"eval/accuracy": 0.125}) + "".join(metrics(step) for step in (1, 2, 3))
    )
    (tmp_path / "samples.jsonl").write_text(sample(3, "first line\n" * 20 + "so \\boxed{5}"))
    status = {"name": "toy", "steps": 40, "columns": COLUMNS, "step": 3, "stage": "rollout", "since": time.time() + 1}
    (tmp_path / "status.json").write_text(json.dumps(status))
    events = [("start", 0, "begins"), ("warning", 2, "step 2: engine and trainer differ"), ("message", 3, "no alarm")]
    (tmp_path / "events.jsonl").write_text(
        "".join(format_line(step, {"kind": kind, "text": text, "time": 1.0}) for kind, step, text in events)
    )
    return tmp_path


def once(folder: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main(["watch", str(folder), "--once"]) == code
    said = capsys.readouterr()
    assert said.err == "" and "\x1b" not in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    return said.out


def test_a_running_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = once(run, capsys)
    assert f"running\n  host {os.uname().nodename}\n  process {os.getpid()}\n" in said
    assert "step 3/40  [##" in said and "8 %  10.0 s a step  6 min left" in said  # 37 steps of 10 s
    assert "now rollout, for" in said
    assert "outcome 0.5  eval 0.125  loss 0.25" in said  # the evaluation is of step 0
    assert "last step 10.0 s, bound by rollout (+3.0 s)" in said
    assert re.search(
        r"rollout +6\.00 s +60 %  #+\n  policy +3\.00 s +30 %  #+\n  \(between stages\) +1\.00 s +10 %", said
    )
    assert "! step 2: engine and trainer differ" in said and "no alarm" not in said
    assert "end of a response: step 3, trained, correct, outcome 1" in said and said.endswith("  so \\boxed{5}\n")


def test_a_finished_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / LOCK_FILE).unlink()
    (run / DONE_FILE).write_text("{}")
    assert once(run, capsys).splitlines()[1] == "finished"
    assert main(["watch", str(run)]) == 0  # ends by itself


def test_a_dead_one_names_its_owner_and_the_way_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own(run, started="1", job="77", attempt="2", pid=4242)
    (run / "checkpoints" / "step-00000002").mkdir(parents=True)
    (run / "checkpoints" / "step-00000002" / "COMPLETE").touch()
    said = once(run, capsys, code=1)
    assert "dead\n  its owner\n  job 77 (attempt 2)\n" in said and "process 4242" in said
    assert "step 2 is saved: go on with --resume auto" in " ".join(said.split())
    assert "left" not in said and "now rollout" not in said


def test_a_stopped_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / LOCK_FILE).unlink()
    assert "not running\n  nobody owns the folder\n" in once(run, capsys)


def test_one_that_starts_has_no_stage_of_an_attempt_before_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"since": time.time() - 3600}))
    assert "now rollout" not in once(run, capsys)
    for name in ("metrics.jsonl", "status.json", "events.jsonl", "samples.jsonl"):
        (run / name).unlink()
    assert "now it starts: no stage has begun yet" in once(run, capsys)


def test_an_empty_folder_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing has begun\n  no run has written here" in once(tmp_path, capsys)
    for folder, what in ((tmp_path / "no", "no such folder"), (Path(__file__), "is a file")):
        assert main(["watch", str(folder)]) == 2
        said = capsys.readouterr().err
        assert f"{folder}: {what}; give the output folder" in said and said.count("\n") == 1


def test_an_older_version_and_half_written_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / LOCK_FILE).unlink()
    for name in ("events.jsonl", "status.json", "samples.jsonl"):
        (run / name).unlink()
    (run / "summary.json").write_text(json.dumps({"steps": 3}))
    (run / "metrics.jsonl").write_text(
        format_line(3, {"time/step_s": 4.0, "time/prm_s": 3.0, "prm_health/alarm": 1.0, "engine/restarts": 2})
    )
    said = once(run, capsys)
    assert said.splitlines()[1] == "finished" and "bound by prm (+2.0 s)" in said
    assert "PRM health: its alarm is on" in said and "engines were restarted 2 times" in said
    for name in ("metrics.jsonl", "events.jsonl", "status.json", "samples.jsonl", "summary.json"):
        (run / name).write_bytes(b'\x00\xff[1]\n{"step": "x"}\n7\n{"step": 9, "time/step_s": nul\n{"step": 1')
    assert "not running" in once(run, capsys)


@pytest.mark.parametrize(
    "odd", ["NaN", "Infinity", None, "text", True, [1], {}, 1e300, -5, 10**400], ids=lambda odd: str(odd)[:9]
)
def test_odd_metrics_are_shown_or_left_out(odd: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("time/step_s", "time/rollout_s", "policy/loss", "rollout/outcome", "prm_health/alarm", "engine/restarts")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4} | dict.fromkeys(keys, odd)) + "\n")
    assert f"step {3 if odd == 10**400 else 4}/40" in once(run, capsys)  # an integer beyond every bound: no line at all
    (run / "metrics.jsonl").write_text(json.dumps({"step": 4} | dict.fromkeys(keys, odd)) + "\n")
    once(run, capsys)


def test_a_response_cannot_steer_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "samples.jsonl").write_text(sample(3, "a\x1b[2Jb\x07c\u202ed\r\n[red]e[/red]"))
    assert once(run, capsys).endswith("  a [2Jb c d\n  [red]e[/red]\n")


@pytest.mark.parametrize("width", [1, 12, 40, 79, 200])
def test_no_line_is_wider_than_the_terminal_nor_the_frame_higher(run: Path, width: int) -> None:
    standing = read_standing(run, LifeWatch(run).look())
    assert all(line.cell_len <= width for line in frame(standing, width))
    free = frame(standing, 80, 60)
    assert len(free) <= 60 and sum("first line" in line.plain for line in free) == 20
    assert len(frame(standing, 80, 30)) <= 30


def test_the_end_of_a_file_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1000)) + '{"step": 1000')
    assert [row["step"] for row in last_rows(path, 60)] == [999, 998, 997]
    assert len(list(last_rows(path, 10**6))) == 1000
    assert list(last_rows(tmp_path / "absent", 60)) == []
    os.mkfifo(tmp_path / "pipe")
    assert list(last_rows(tmp_path / "pipe", 60)) == []
    assert [number(value) for value in (1, "x", True, None)] == [1.0, None, None, None]


def test_an_owner_that_cannot_be_asked_lives_by_its_signs(tmp_path: Path) -> None:
    own(tmp_path, host="elsewhere", boot="other")
    now = [1000.0]
    os.utime(tmp_path / LOCK_FILE, (now[0] - 3, now[0] - 3))
    watch = LifeWatch(tmp_path, now=lambda: now[0], known=lambda owner: None)

    def look(after_s: float) -> Life:
        now[0] += after_s
        return watch.look()

    assert look(0).lives and look(PATIENCE_S - 4).lives
    silent = look(2)
    assert not silent.lives and silent.sign_s == PATIENCE_S + 1
    os.utime(tmp_path / LOCK_FILE, (5.0, 5.0))  # its host's clock is far behind: a change is a sign all the same
    assert look(1).lives and not look(PATIENCE_S + 1).lives


def test_the_controller_is_asked_once_a_minute(tmp_path: Path) -> None:
    own(tmp_path, host="elsewhere", boot="other", job="7")
    now, asked = [0.0], []
    watch = LifeWatch(tmp_path, now=lambda: now[0], known=lambda owner: bool(asked.append(owner.job)) or len(asked) < 2)
    lives = []
    for _ in range(13):
        lives.append(watch.look().lives)
        now[0] += 10
    assert len(asked) == 3 and lives[0] and not lives[-1]


@pytest.fixture
def terminal(run: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """`watch` in a terminal of 80 columns and 30 lines; the process and the terminal's other end."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "prime_megatron", "watch", str(run), "--every", "0.2"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=os.environ | {"TERM": "xterm"},
        # A suite that runs in the background of a shell inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(theirs)
    yield process, ours
    process.kill()
    process.wait()
    os.close(ours)


def read_until(ours: int, text: str) -> str:
    """What the terminal was sent, up to this text."""
    seen, deadline = "", time.monotonic() + 120
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([ours], [], [], 1.0)[0]:
            try:
                seen += os.read(ours, 65536).decode(errors="replace")
            except OSError:
                break  # the process has closed it
    assert text in seen, seen
    return seen


def test_a_terminal_of_80_columns_follows_a_run_to_its_end(run: Path, terminal: Any) -> None:
    process, ours = terminal
    first = read_until(ours, "step 3/40")
    assert "\x1b[?1049h" in first  # a screen of its own
    with (run / "metrics.jsonl").open("a") as file:
        file.write(metrics(4))
    assert "\x1b[?1049l" not in read_until(ours, "step 4/40")
    (run / DONE_FILE).write_text("{}")
    last = read_until(ours, "so \\boxed{5}\r\n")
    while "\x1b[?1049l" not in last:
        last += read_until(ours, "so \\boxed{5}\r\n")
    assert process.wait(60) == 0
    kept = last.rpartition("\x1b[?1049l")[2]  # what is left on the user's own screen
    assert "finished" in kept and "step 4/40" in kept


def test_ctrl_c_ends_it_quietly(terminal: Any) -> None:
    process, ours = terminal
    read_until(ours, "step 3/40")
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in read_until(ours, "\x1b[?1049l")
    assert process.wait(60) == 0


def test_without_a_terminal_a_frame_a_look_until_the_reader_leaves(run: Path) -> None:
    command = [sys.executable, "-m", "prime_megatron", "watch", str(run), "--every", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None and process.stderr is not None
    seen = b""
    while seen.count(b"step 3/40") < 2:
        seen += process.stdout.read1()
    assert b"\x1b" not in seen
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == b""


def test_a_death_on_this_host_is_seen_at_the_next_look(run: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    own(run, pid=child.pid, started=Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    watch = LifeWatch(run)
    assert read_standing(run, watch.look()).state is State.running
    child.kill()
    child.wait()
    assert read_standing(run, watch.look()).state is State.dead
