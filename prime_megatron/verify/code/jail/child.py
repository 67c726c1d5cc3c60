"""What happens in a confined child: a program run as a script, or one that answers calls.

The program shares its interpreter with this code and may reach all of it. Nothing here is worth reaching: expected
values are elsewhere, and a forged reply can claim a value that the program could have returned.
"""

import atexit
import builtins
import gc
import io
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from prime_megatron.verify.code.jail import values

REQUESTS, REPLIES = 3, 4
"""Descriptors of a child that answers calls."""
_PRELUDE = {
    "typing": (
        "Any", "Callable", "Deque", "DefaultDict", "Dict", "FrozenSet", "Generator", "Iterable", "Iterator", "List",
        "NamedTuple", "Optional", "Sequence", "Set", "Tuple", "Type", "Union",
    ),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "functools": ("cache", "cmp_to_key", "lru_cache", "reduce"),
    "itertools": ("accumulate", "chain", "combinations", "groupby", "permutations", "product"),
    "heapq": ("heapify", "heappop", "heappush"),
    "bisect": ("bisect", "bisect_left", "bisect_right"),
    "math": ("ceil", "floor", "gcd", "inf", "sqrt"),
}  # fmt: skip
"""Names that LeetCode's judge gives to a solution, beside these modules and the ones below."""
_PRELUDE_MODULES = ("collections", "functools", "itertools", "heapq", "bisect", "math", "random", "re", "string", "sys")

_exit, _write, _read, _run = os._exit, os.write, os.read, builtins.exec
_compile, _hook, _flush = compile, sys.__excepthook__, io.TextIOWrapper.flush
_BaseException, _SystemExit, _exc_info = BaseException, SystemExit, sys.exc_info
_getattr, _str, _type, _callable, _isinstance, _int = getattr, str, type, callable, isinstance, int
_memoryview, _enumerate, _collect = memoryview, enumerate, gc.collect
_write_value, _read_value = values.write, values.read
_finish_threads, _finish_atexit = threading._shutdown, atexit._run_exitfuncs


def prelude() -> dict[str, Any]:
    """What a solution that answers calls finds in its namespace."""
    names: dict[str, Any] = {name: __import__(name) for name in _PRELUDE_MODULES}
    for module, wanted in _PRELUDE.items():
        names |= {name: getattr(__import__(module), name) for name in wanted}
    return names


def open_streams() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """sys.stdin, stdout and stderr anew, over descriptors 0 to 2, UTF-8 as Python's own; returns the last two."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    out = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    err = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = out  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = err  # type: ignore[misc]
    return out, err


def _namespace(name: str, names: dict[str, Any]) -> dict[str, Any]:
    module = types.ModuleType(name)
    module.__dict__.update(names, __builtins__=builtins)
    sys.modules[name] = module
    return module.__dict__


def run_script(code: str) -> None:
    """Runs the program as Python runs a file, and ends the process with the exit code that Python would end with."""
    out, err = open_streams()
    namespace = _namespace("__main__", {"__file__": "solution.py"})
    status = 1
    try:
        _run(_compile(code, "solution.py", "exec", dont_inherit=True), namespace)
        status = 0
    except _SystemExit as leaving:
        status = _exit_status(leaving.code, err)
    except _BaseException:
        sys.stderr = err
        _quietly(lambda: _hook(*_exc_info()))
    _quietly(_finish_threads)
    _quietly(_finish_atexit)
    _quietly(lambda: sys.stdout.flush())
    # Files that the program never closed are written when its names go, as at the end of an interpreter.
    _quietly(namespace.clear)
    _quietly(_collect)
    _quietly(lambda: sys.stdout.flush())
    if not _quietly(lambda: _flush(out)):
        status = status or 120  # as Python itself when the output could not be written
    _quietly(lambda: _flush(err))
    _exit(status)


def _exit_status(code: object, err: io.TextIOWrapper) -> int:
    if code is None:
        return 0
    if _isinstance(code, _int):
        return code & 0xFF
    _quietly(lambda: err.write(f"{code}\n"))
    return 1


def _quietly(action: Callable[[], object]) -> bool:
    try:
        action()
    except _BaseException:
        return False
    return True


class Server:
    """Loads a program and answers calls of its functions, one JSON line each way (see `values`).

    A request: {"name": ..., "args": [...], "kwargs": {"dict": [...]}}; a reply: NONCE NUMBER value|raised TEXT. The
    number counts requests; both keep what a program writes by chance, or ahead of time, from passing for a reply.
    """

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._kept: list[Any] = []
        """Objects that have no text; a ref is an index."""

    def serve(self, code: str) -> None:
        """Never returns: answers until the requests end."""
        open_streams()
        namespace = _namespace("solution", prelude())
        problem = None
        try:
            _run(_compile(code, "solution.py", "exec", dont_inherit=True), namespace)
        except _BaseException:
            problem = self._raised()
        for number, request in _enumerate(_lines()):
            try:
                reply = problem or self._call(namespace, request)
            except _BaseException:
                reply = self._raised()
            _write_whole(REPLIES, f"{self._nonce} {number} {reply}\n".encode())
        _exit(0)

    def _call(self, namespace: dict[str, Any], request: str) -> str:
        name, args, kwargs = _read_value(request, self._kept.__getitem__)
        result = _find(namespace, name)(*args, **kwargs)
        return "value " + _write_value(result, self._keep)

    def _keep(self, value: Any) -> int:
        self._kept.append(value)
        return len(self._kept) - 1

    def _raised(self) -> str:
        kind, problem, _ = _exc_info()
        name = _type.__getattribute__(kind, "__name__") if kind is not None else "Exception"
        try:
            text = _str(problem)[:200]
        except _BaseException:
            text = ""
        return "raised " + _write_value([_str(name), _str(text)], lambda _: 0)


def _find(namespace: dict[str, Any], name: str) -> Any:
    """The function of that name: the module's own, else a method of its class Solution."""
    last = name.rpartition(".")[2]
    if last in namespace and _callable(namespace[last]):
        return namespace[last]
    if "Solution" in namespace:
        return _getattr(namespace["Solution"](), last)
    raise NameError(f"name {last!r} is not defined")


def _lines() -> Iterator[str]:
    pending = b""
    while chunk := _read(REQUESTS, 1 << 20):
        pending += chunk
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            yield line.decode()


def _write_whole(target: int, data: bytes) -> None:
    view = _memoryview(data)
    while view:
        view = view[_write(target, view) :]
