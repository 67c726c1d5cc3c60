"""Ground truths of code: what the data's text says, as tests.

Three forms, each a JSON object:
    {"inputs": [...], "outputs": [...]}                  standard input and output; text, or lists of lines
    {"inputs": [...], "outputs": [...], "fn_name": "f"}  calls: an input is the arguments, as a JSON list or as text
                                                         with one JSON value a line; an output is the result, as JSON
    {"test_list": ["assert ...", ...]}                   MBPP's asserts; test_imports and test_setup_code before them
    {"test": "def check(candidate): ...", "entry_point": "f"}   HumanEval's
Eurus-2-RL-Data has the first two, from four sources: APPS and TACO write results in a list of one as often as not, and
arguments as lists; LeetCode's have text with one JSON value a line.
"""

import ast
import json
from typing import Any

from prime_megatron.verify.code.jail.attempt import AssertTest, CallTest, ScriptTest, Test


def parse_truth(text: str) -> list[Test]:
    """The tests, at least one.

    Raises:
        ValueError: broken JSON, another form, no tests, unequal counts, a test of another kind; one line.
    """
    try:
        truth = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("broken JSON (nested too deep)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(truth, dict):
        raise ValueError("it must be a JSON object with inputs and outputs")
    if "test_list" in truth:
        return _from_asserts(truth)
    if "test" in truth and "entry_point" in truth:
        return _from_check(truth)
    return _from_pairs(truth)


def _from_pairs(truth: dict[str, Any]) -> list[Test]:
    inputs, outputs, function = truth.get("inputs"), truth.get("outputs"), truth.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise ValueError("it needs lists of inputs and outputs, or test_list, or test and entry_point")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    if not inputs:
        raise ValueError("no tests")
    pairs = list(zip(inputs, outputs))
    if function in (None, ""):
        return [ScriptTest(_text(i, "input", n), _text(o, "output", n)) for n, (i, o) in enumerate(pairs, start=1)]
    if not isinstance(function, str) or not all(part.isidentifier() for part in function.split(".")):
        raise ValueError(f"fn_name must be a function's name, not {function!r}"[:200])
    calls = [(_arguments(i, n), _result(i, o, n)) for n, (i, o) in enumerate(pairs, start=1)]
    # A list of one in every test: the sources wrap results like this, but a function may return such lists, too.
    wrapped = all(isinstance(result, list) and len(result) == 1 for _, result in calls)
    return [CallTest(function, given, [result, result[0]] if wrapped else [result]) for given, result in calls]


def _text(value: Any, what: str, number: int) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{what} {number} must be text, or a list of lines")
    return value


def _arguments(value: Any, number: int) -> list[Any]:
    if isinstance(value, str):
        lines = [line for line in value.split("\n") if line.strip()]
        value = [_json(line, f"input {number}") for line in lines]
    if not isinstance(value, list):
        raise ValueError(f"input {number} must be a list of arguments, or text with one JSON value a line")
    return [_with_number_keys(argument) for argument in value]


def _result(given: Any, value: Any, number: int) -> Any:
    """Text is JSON where the arguments are text, and itself where they are a list."""
    return _json(value, f"output {number}") if isinstance(given, str) and isinstance(value, str) else value


def _with_number_keys(argument: Any) -> Any:
    """JSON writes every key as text; a mapping whose keys all are integers was one from integers."""
    if not isinstance(argument, dict) or not argument:
        return argument
    if not all(key.lstrip("-").isdecimal() and key.isascii() and key == str(int(key)) for key in argument):
        return argument
    return {int(key): value for key, value in argument.items()}


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{what} is not JSON ({problem})") from None


def _from_asserts(truth: dict[str, Any]) -> list[Test]:
    tests, imports = truth["test_list"], truth.get("test_imports") or []
    setup = truth.get("test_setup_code") or ""
    if not _all_text(tests) or not _all_text(imports) or not isinstance(setup, str):
        raise ValueError("test_list and test_imports must be lists of text, test_setup_code text")
    if not tests:
        raise ValueError("no tests")
    before = "\n".join([*imports, setup])
    return [AssertTest(_python(f"{before}\n{test}", f"test {n}"), {}) for n, test in enumerate(tests, start=1)]


def _from_check(truth: dict[str, Any]) -> list[Test]:
    test, name = truth["test"], truth["entry_point"]
    if not isinstance(test, str) or not isinstance(name, str) or not name.isidentifier():
        raise ValueError("test must be text, and entry_point a function's name")
    if "check" not in test:
        raise ValueError("test defines no check(candidate)")
    return [AssertTest(_python(f"{test}\n\ncheck(candidate)\n", "test"), {"candidate": name, name: name})]


def _python(source: str, what: str) -> str:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise ValueError(f"{what} is not Python ({problem})") from None
    if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
        raise ValueError(f"{what} asserts nothing")
    return source


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")
