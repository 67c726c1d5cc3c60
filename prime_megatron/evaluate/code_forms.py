"""Programming problems as they are published: HumanEval, MBPP, LeetCode's file of PRIME's release, LiveCodeBench."""

from __future__ import annotations

import ast
import base64
import json
import pickletools
import re
import zlib
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.evaluate.item import Problem
from prime_megatron.generate.tables import Row

_LIBRARY = (
    "import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys\n"
    "from bisect import *\nfrom collections import *\nfrom functools import *\nfrom heapq import *\n"
    "from itertools import *\nfrom math import *\nfrom typing import *\n"
)
"""What LeetCode's own judge has imported before a program begins."""
_LIST_NODE = "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val, self.next = val, next\n"
_LIST_CALL = """
def list_call(values):
    node = None
    for value in reversed(values):
        node = ListNode(value, node)
    node, found = Solution().{name}(node), []
    while node is not None:
        found.append(node.val)
        node = node.next
    return found
"""
_MAX_TESTS_BYTES = 2**30


def humaneval(row: Row, origin: str) -> Problem:
    """task_id, prompt, test, entry_point, canonical_solution: a function to complete."""
    prompt, name = _text(row, "prompt", origin), _text(row, "entry_point", origin)
    head, found, _ = prompt.rpartition(f"def {name}(")
    if not found:
        raise InputError(f"{origin}: the prompt does not define {name}")
    solution = row.get("canonical_solution")
    return Problem(
        id=_text(row, "task_id", origin),
        question=f"Complete the function `{name}`:\n```python\n{prompt.rstrip()}\n```",
        truth=json.dumps({"test": _text(row, "test", origin), "entry_point": name}),
        before=head,
        entry_point=name,
        start=prompt,
        solution=prompt + solution if isinstance(solution, str) else None,
    )


def mbpp(row: Row, origin: str) -> Problem:
    """task_id, prompt (or text), code, test_list, perhaps test_imports or test_setup_code: a function by example."""
    tests = row.get("test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise InputError(f"{origin}: test_list must be a list of asserts")
    text = row["prompt"] if isinstance(row.get("prompt"), str) else _text(row, "text", origin)
    truth = {"test_list": tests, "test_imports": row.get("test_imports") or []}
    truth["test_setup_code"] = row.get("test_setup_code") or ""
    code = row.get("code")
    return Problem(
        id=str(_value(row, "task_id", origin)),
        question=f"{text}\nThe function should pass this test:\n```python\n{tests[0]}\n```",
        truth=json.dumps(truth),
        solution=code if isinstance(code, str) else None,
    )


def leetcode(row: Row, origin: str) -> Problem:
    """task_id, prompt_sft, test: asserts on calls of Solution's method with arguments by name, as literals."""
    inputs, outputs, name, lists = _calls(_text(row, "test", origin), origin)
    question = _text(row, "prompt_sft", origin)
    return Problem(
        id=_text(row, "task_id", origin),
        question=question,
        truth=json.dumps({"inputs": inputs, "outputs": outputs, "fn_name": "list_call" if lists else name}),
        before=_LIBRARY + (_LIST_NODE if lists else ""),
        after=_LIST_CALL.replace("{name}", name) if lists else "",
    )


def livecodebench(row: Row, origin: str) -> Problem:
    """question_id, question_content, starter_code, public_test_cases, private_test_cases, metadata."""
    tests = _tests(row, "public_test_cases", origin) + _tests(row, "private_test_cases", origin)
    metadata = _json(row["metadata"], f"{origin}: metadata") if isinstance(row.get("metadata"), str) else {}
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    starter = row.get("starter_code") or ""
    how = (
        f"Use this starter code:\n```python\n{starter.rstrip()}\n```"
        if starter
        else "Read the input from standard input and write the answer to standard output."
    )
    truth: dict[str, Any] = {
        "inputs": [test["input"] for test in tests],
        "outputs": [test["output"] for test in tests],
    }
    if name:
        truth["fn_name"] = name
    return Problem(
        id=_text(row, "question_id", origin),
        question=f"{_text(row, 'question_content', origin)}\n\n{how}",
        truth=json.dumps(truth),
        before=_LIBRARY if name else "",
    )


FORMS = {"humaneval": humaneval, "mbpp": mbpp, "leetcode": leetcode, "livecodebench": livecodebench}
"""Name of a form -> its reader: (row, "file, row n") -> Problem; InputError for a row that is none."""


def _calls(source: str, origin: str) -> tuple[list[list[Any]], list[Any], str, bool]:
    """(arguments, results, method, whether arguments and results are linked lists) of a LeetCode test."""
    inputs, outputs, names, lists = [], [], set(), False
    given: list[Any] = []
    try:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                values = [_literal(value) for value in node.value.values]
                given, lists = [value for value, _ in values], lists or any(wrapped for _, wrapped in values)
            elif isinstance(node, ast.Assert):
                assert isinstance(node.test, ast.Compare)
                assert [type(op) for op in node.test.ops] == [ast.Eq]
                call = node.test.left
                assert isinstance(call, ast.Call)
                if isinstance(call.func, ast.Name):  # a helper that makes a list of a linked list
                    assert isinstance(call.args[0], ast.Call)
                    call = call.args[0]
                assert isinstance(call.func, ast.Attribute)
                names.add(call.func.attr)
                inputs.append(given)
                outputs.append(ast.literal_eval(node.test.comparators[0]))
        assert len(names) == 1
    except (SyntaxError, ValueError, AssertionError, IndexError, RecursionError):
        raise InputError(f"{origin}: test is not asserts of the form solution.method(**arguments) == value") from None
    return inputs, outputs, names.pop(), lists


def _literal(node: ast.expr) -> tuple[Any, bool]:
    """(value, whether it is given through a helper that makes a linked list)."""
    if isinstance(node, ast.Call):
        return ast.literal_eval(node.args[0]), True
    return ast.literal_eval(node), False


def _tests(row: Row, key: str, origin: str) -> list[dict[str, str]]:
    text = row.get(key)
    if text in (None, "", []):
        return []
    tests = _json(text, f"{origin}: {key}", packed=True) if isinstance(text, str) else text
    good = isinstance(tests, list) and all(
        isinstance(test, dict) and all(isinstance(test.get(part), str) for part in ("input", "output"))
        for test in tests
    )
    if not good:
        raise InputError(f"{origin}: {key} must be a list of tests with input and output")
    return list(tests)


def _json(text: str, what: str, *, packed: bool = False) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if not packed:
            raise InputError(f"{what} is not JSON") from None
    try:
        return json.loads(_unpickled_text(_inflated(base64.b64decode(text, validate=True))))
    except (ValueError, RecursionError, zlib.error):
        raise InputError(f"{what} is neither JSON nor its packed form") from None


def _inflated(data: bytes) -> bytes:
    machine = zlib.decompressobj()
    plain = machine.decompress(data, _MAX_TESTS_BYTES)
    if machine.unconsumed_tail:
        raise ValueError("too large")
    return plain


def _unpickled_text(data: bytes) -> str:
    """The text of a pickle that holds one text and nothing else: read, never executed."""
    texts = []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"):
            texts.append(str(argument))
        elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"):
            raise ValueError(f"a pickle of something else than text ({opcode.name})")
    if len(texts) != 1:
        raise ValueError("a pickle of several texts")
    return texts[0]


def _value(row: Row, key: str, origin: str) -> Any:
    if row.get(key) is None:
        raise InputError(f"{origin}: {key} is missing; the row has {', '.join(row) or 'no keys'}")
    return row[key]


def _text(row: Row, key: str, origin: str) -> str:
    value = _value(row, key, origin)
    if not isinstance(value, str) or not value:
        raise InputError(f"{origin}: {key} must be text that is not empty")
    return re.sub("\r\n?", "\n", value)
