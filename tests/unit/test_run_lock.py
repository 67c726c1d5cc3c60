"""One owner per output folder: who is refused, who takes over, and that two never own it at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import prime_megatron
from prime_megatron.errors import InputError
from prime_megatron.run import lock
from prime_megatron.run.lock import LOCK_FILE, Owner, check_owner, owned, read_owner

HOLD = """
import sys, time
from pathlib import Path
from prime_megatron.run.lock import owned
with owned(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A process that owns the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(prime_megatron.__file__).parent.parent), "SLURM_JOB_ID": "77"},
    )
    assert process.stdout is not None and process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.wait()


def write(folder: Path, owner: Owner) -> None:
    (folder / LOCK_FILE).write_text(json.dumps(asdict(owner)))


def test_the_lock_lasts_as_long_as_the_block(tmp_path: Path) -> None:
    with owned(tmp_path / "out"):
        owner = read_owner(tmp_path / "out")
        assert owner is not None and owner.pid == os.getpid() and owner.host == socket.gethostname()
    assert not any((tmp_path / "out").iterdir())


def test_a_living_owner_is_named_in_one_line(holder: subprocess.Popen, tmp_path: Path) -> None:
    for attempt in (lambda: check_owner(tmp_path), lambda: owned(tmp_path).__enter__()):
        with pytest.raises(
            InputError, match=rf"belongs to another run: job 77 .*process {holder.pid}, since 2"
        ) as told:
            attempt()
        assert "\n" not in str(told.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_killed_owner_is_replaced_at_once(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with owned(tmp_path):
        owner = read_owner(tmp_path)
        assert owner is not None and owner.pid == os.getpid()
    assert time.monotonic() - began < lock.PATIENCE_S / 2


def test_a_process_id_that_was_used_again_is_nobody(tmp_path: Path) -> None:
    write(tmp_path, replace(Owner.this_process(), started="1"))
    check_owner(tmp_path)
    write(tmp_path, replace(Owner.this_process(), boot="another"))
    check_owner(tmp_path)


def test_an_earlier_attempt_of_the_same_job_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    elsewhere = replace(Owner.this_process(), host="gone", attempt="0")
    write(tmp_path, elsewhere)
    check_owner(tmp_path)
    write(tmp_path, replace(elsewhere, attempt="1", job="78"))
    monkeypatch.setattr(lock, "job_runs", lambda job: job == "78")
    with pytest.raises(InputError, match="job 78"):
        check_owner(tmp_path)
    monkeypatch.setattr(lock, "job_runs", lambda job: False)
    check_owner(tmp_path)


def test_another_host_is_believed_by_its_signs_of_life(tmp_path: Path) -> None:
    write(tmp_path, replace(Owner.this_process(), host="elsewhere", job=""))
    check_owner(tmp_path, patience_s=1)
    toucher = multiprocessing.get_context("fork").Process(target=touch, args=(tmp_path / LOCK_FILE,))
    toucher.start()
    try:
        with pytest.raises(InputError, match="host elsewhere"):
            check_owner(tmp_path, patience_s=30)
    finally:
        toucher.kill()
        toucher.join()


def touch(path: Path) -> None:
    while True:
        time.sleep(0.5)
        os.utime(path)


RACE = """
import sys
from pathlib import Path
from prime_megatron.errors import InputError
from prime_megatron.run.lock import owned
folder = Path(sys.argv[1])
sys.stdin.readline()
try:
    with owned(folder):
        with (folder / "inside").open("x"):
            sys.stdin.readline()
        (folder / "inside").unlink()
    print("owner")
except InputError:
    print("refused")
"""


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path: Path) -> None:
    write(tmp_path, replace(Owner.this_process(), started="1"))
    env = os.environ | {"PYTHONPATH": str(Path(prime_megatron.__file__).parent.parent)}
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], stdin=-1, stdout=-1, text=True, env=env)
        for _ in range(6)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    # The refused end by themselves; the owner waits for its second line.
    deadline = time.monotonic() + 60
    while sum(racer.poll() is None for racer in racers) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    said = sorted(racer.communicate("over\n", timeout=60)[0] if racer.poll() is None else racer.stdout.read()
                  for racer in racers)  # fmt: skip
    assert said == ["owner\n"] + ["refused\n"] * 5
