"""Whether this machine can hold generated programs: what the kernel offers, and a few attacks that must fail."""

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.config import CodeConfig
from prime_megatron.errors import InputError
from prime_megatron.verify.answer import CORRECT, Answer
from prime_megatron.verify.code.jail import landlock, seccomp
from prime_megatron.verify.code.verifier import CodeVerifier


@dataclass(frozen=True)
class Kernel:
    """landlock: the ABI's number, 0 for none. seccomp: filters, and this machine's system calls known."""

    landlock: int
    seccomp: bool


def look() -> Kernel:
    """What this kernel offers; starts nothing."""
    return Kernel(landlock.abi(), seccomp.offered())


def refusal(config: CodeConfig) -> str | None:
    """Why the config's jail cannot be made on this machine, in one line; None: it can."""
    kernel = look()
    if config.jail == "none":
        return None
    missing = [] if kernel.landlock else ["Landlock (Linux 5.13 or newer, enabled)"]
    missing += [] if kernel.seccomp else ["seccomp filters (x86-64 or aarch64)"]
    if not missing:
        return None
    return (
        f"this kernel lacks {' and '.join(missing)}, so generated programs cannot be held; leave such rows out "
        "(data.skip_abilities=[code]) or run them with your rights (verify.code.jail=none)"
    )


@dataclass(frozen=True)
class Attack:
    """A program that tries something; it prints "held" where that fails, and only then scores 1."""

    name: str
    body: str


_LISTENER, _OUTSIDE, _PARENT = "LISTENER", "OUTSIDE", "PARENT"
ATTACKS = (
    Attack("read a file outside", f"open({_OUTSIDE!r}).read()"),
    Attack("write a file outside", f"open({_OUTSIDE!r}, 'w').write('x')"),
    Attack("read /proc", "open('/proc/self/environ').read()"),
    Attack("change a file's mode", f"os.chmod({_OUTSIDE!r}, 0o777)"),
    Attack("fork", "os.fork()"),
    Attack("start a program", "os.execv('/bin/true', ['/bin/true'])"),
    Attack("open a socket", f"socket.create_connection(('127.0.0.1', {_LISTENER}), 1)"),
    Attack("signal another process", f"os.kill({_PARENT}, 0)"),
    Attack("raise its limits", "resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))"),
    Attack("hold memory", "x = bytearray(64 << 30)"),
)
_TEMPLATE = """```python
import os, socket, resource
try:
    {body}
except (OSError, ValueError, MemoryError):
    print("held")
```"""
_TRUTH = json.dumps({"inputs": [""], "outputs": ["held"]})
_PLAIN = "```python\nprint(sum(map(int, input().split())))\n```"


def attack(config: CodeConfig) -> list[tuple[str, bool, str]]:
    """Runs every attack on this machine: (name, whether it was held, what came of it), and a harmless program first.

    Takes a second or two. Raises RunError when the verifier cannot start.
    """
    verifier = CodeVerifier(1, config)
    try:
        with _targets() as names:
            futures = [("(a harmless program runs)", verifier.submit(Answer("code", _PLAIN, _PLAIN_TRUTH)))]
            for item in ATTACKS:
                body = item.body
                for placeholder, value in names.items():
                    body = body.replace(placeholder, value)
                futures.append((item.name, verifier.submit(Answer("code", _TEMPLATE.format(body=body), _TRUTH))))
            verdicts = [(name, future.result()) for name, future in futures]
    finally:
        verifier.close()
    return [(name, verdict.verdict == CORRECT, verdict.reason) for name, verdict in verdicts]


def prove_jail(config: CodeConfig) -> None:
    """Attacks this machine before a run that has code rows.

    Raises:
        InputError: an attack was not held, or the harmless program does not run.
    """
    failed = [f"{name} ({reason})" for name, held, reason in attack(config) if not held]
    if failed:
        raise InputError(
            f"ability 'code': generated programs are not held on this machine: {'; '.join(failed)}; "
            "see prime-megatron jail-check"
        )


_PLAIN_TRUTH = json.dumps({"inputs": ["1 2"], "outputs": ["3"]})


@contextmanager
def _targets() -> Iterator[dict[str, str]]:
    """What the attacks aim at: a file, a listening socket, this process."""
    with tempfile.TemporaryDirectory(prefix="prime-code-") as folder, socket.create_server(("127.0.0.1", 0)) as server:
        file = Path(folder) / "outside"
        file.write_text("a secret")
        file.chmod(0o666)
        Path(folder).chmod(0o755)
        yield {_OUTSIDE: str(file), _LISTENER: str(server.getsockname()[1]), _PARENT: str(os.getpid())}
