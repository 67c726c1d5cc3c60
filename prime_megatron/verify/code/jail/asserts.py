"""Assert-style tests, in a confined child of their own: the program is another process, its functions are remote.

The tests hold expected values, so they never share an interpreter with the program. What a call returns arrives as a
plain value of an exact built-in type, or as a handle that equals nothing.
"""

import ast
import builtins
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from prime_megatron.verify.code.jail import values
from prime_megatron.verify.code.jail.child import open_streams

REPLIES, REQUESTS, VERDICT = 3, 4, 5
"""Descriptors of a child that runs tests: the program's replies, our requests, and the verdict for the worker."""
_run: Callable[..., None] = builtins.exec


class Handle:
    """An object that stayed in the program."""

    def __init__(self, number: int) -> None:
        self.number = number


class Lost(Exception):
    """The program ended, or wrote something that is no reply."""


class Remote:
    """The program's functions, over two pipes."""

    def __init__(self, nonce: str, max_bytes: int) -> None:
        self._nonce = nonce
        self._max_bytes = max_bytes
        self._number = 0
        self._pending = b""

    def function(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call([name, list(args), kwargs])

        return call

    def _call(self, request: list[Any]) -> Any:
        text = values.write(request, lambda handle: handle.number)
        data = memoryview(text.encode() + b"\n")
        while data:
            data = data[os.write(REQUESTS, data) :]
        kind, _, content = self._reply().partition(" ")
        value = values.read(content, Handle)
        if kind == "value":
            return value
        name, message = value
        known = getattr(builtins, name, None)
        if isinstance(known, type) and issubclass(known, Exception):
            raise known(message)
        raise RuntimeError(f"{name}: {message}")

    def _reply(self) -> str:
        while b"\n" not in self._pending:
            chunk = os.read(REPLIES, 1 << 20)
            if not chunk or len(self._pending) > self._max_bytes:
                raise Lost
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        start = f"{self._nonce} {self._number} "
        self._number += 1
        text = line.decode("ascii", errors="replace")
        if not text.startswith(start):
            raise Lost
        return text.removeprefix(start)


def run_tests(spec: dict[str, Any]) -> None:
    """Runs spec["test"] and ends the process; the verdict is "passed" or "failed WHY".

    Names that the test uses and does not make are the program's functions; spec["aliases"] are further names of
    ones.
    """
    open_streams()
    remote = Remote(spec["nonce"], spec["max_bytes"])
    namespace: dict[str, Any] = {"__name__": "test"}
    try:
        tree = ast.parse(spec["test"])
        functions, modules = _free_names(tree)
        for name in functions:
            namespace[name] = remote.function(name)
        for name in modules:
            namespace[name] = importlib.import_module(name)
        for alias, name in spec["aliases"].items():
            namespace[alias] = remote.function(name)
        _run(compile(tree, "test.py", "exec", dont_inherit=True), namespace)
        verdict = "passed"
    except Lost:
        verdict = "failed the program ended early"
    except AssertionError:
        verdict = "failed an assertion does not hold"
    except BaseException as failure:
        verdict = f"failed {type(failure).__name__}: {failure}"[:200]
    os.write(VERDICT, verdict.encode("utf-8", errors="replace"))
    os._exit(0)


def _free_names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """(the program's functions, modules): what the tests use and do not make.

    A module of the standard library is one that an attribute is taken of; programs import it for such tests. A
    program's function that has a built-in's name is called in tests that call nothing else of the program's.
    """
    used, made, dotted, called = set(), set(), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted.add(node.value.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.append(node.func.id)
    modules = (used - made) & dotted & sys.stdlib_module_names
    functions = used - made - modules - set(dir(builtins))
    return functions or set(called[:1]) - made, modules
