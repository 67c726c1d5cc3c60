"""Every program of `code_programs` gets its reward, touches nothing, leaves nothing, and harms no other test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_programs import ALL, SQUARES, Program

from prime_megatron.config import CodeConfig
from prime_megatron.verify import Answer
from prime_megatron.verify.code.check import refusal
from prime_megatron.verify.code.verifier import CodeVerifier

pytestmark = pytest.mark.skipif(
    refusal(CodeConfig()) is not None, reason="this kernel cannot hold programs: no Landlock, or no seccomp"
)
CONFIG = CodeConfig(timeout_s=2.5, sample_timeout_s=10.0, memory_bytes=2**29)
SECRET = "a secret\n"


class Surroundings:
    """What the programs aim at: a file outside, a port, this process."""

    def __init__(self, folder: Path, server: socket.socket) -> None:
        self.file = folder / "outside"
        self.file.write_text(SECRET)
        self.file.chmod(0o666)
        folder.chmod(0o755)
        self.server = server
        self.before = self.state()

    def state(self) -> tuple[str, os.stat_result, list[str]]:
        return self.file.read_text(), self.file.stat(), sorted(os.listdir(self.file.parent))

    def named(self, code: str) -> str:
        port = str(self.server.getsockname()[1])
        return code.replace("OUTSIDE", str(self.file)).replace("LISTENER", port).replace("PARENT", str(os.getpid()))

    def are_untouched(self) -> bool:
        (text, stat, names), (text_0, stat_0, names_0) = self.state(), self.before
        same = [(stat.st_mode, stat.st_uid, stat.st_mtime_ns, stat.st_nlink)] * 2
        same[1] = (stat_0.st_mode, stat_0.st_uid, stat_0.st_mtime_ns, stat_0.st_nlink)
        self.server.settimeout(0.0)
        try:
            self.server.accept()
        except BlockingIOError:
            return (text, names) == (text_0, names_0) and same[0] == same[1]
        return False


@pytest.fixture(scope="module")
def around() -> Iterator[Surroundings]:
    # Not below pytest's own folder, which only its owner may enter: permissions must not be what holds a program.
    folder = Path(tempfile.mkdtemp(prefix="outside-"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Surroundings(folder, server)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    verifier = CodeVerifier(1, CONFIG)
    yield verifier
    (pid,) = verifier.pool.pids()
    assert len(family(pid)) == 2, "a process is left beside the worker and its zygote"
    verifier.close()
    assert not family(pid)


def family(pid: int) -> set[int]:
    """The process and its descendants."""
    found = {pid} if Path(f"/proc/{pid}").exists() else set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found |= family(int(child))
    return found


def fenced(code: str) -> str:
    return f"Here it is.\n```python\n{code}\n```\n"


@pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
def test_a_program_gets_its_reward_and_touches_nothing(
    program: Program, verifier: CodeVerifier, around: Surroundings
) -> None:
    verdict = verifier.submit(Answer("code", fenced(around.named(program.code)), program.truth)).result(timeout=60)
    assert verdict.score == program.score, verdict
    assert program.verdict == "any" or verdict.verdict in program.verdict.split("|"), verdict
    assert around.are_untouched()
    # The next test is unharmed, in the same worker.
    after = verifier.submit(Answer("code", fenced("print(int(input()) ** 2)"), SQUARES)).result(timeout=60)
    assert (after.score, after.verdict) == (1.0, "correct"), after
    (pid,) = verifier.pool.pids()
    assert len(family(pid)) == 2


def test_the_matrix_is_large_enough() -> None:
    assert len(ALL) >= 60
    assert len({program.name for program in ALL}) == len(ALL)


ORDINARY = (
    "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all,+dac_read_search "
    "--ambient-caps=+dac_read_search --bounding-set=-all,+dac_read_search"
).split()
"""Nobody, who may read what root's interpreter consists of, wherever it lies."""


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="this already is an ordinary user")
def test_the_same_as_an_ordinary_user(tmp_path: Path) -> None:
    command = [*ORDINARY, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "250", __file__]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(ALL) + 1} passed, 1 skipped" in done.stdout
