"""Published forms of programming problems: APPS, TACO, CodeContests, Codeforces."""

from __future__ import annotations

import json
from typing import Any

from prime_megatron.config.curate import ReadConfig
from prime_megatron.curate.columns import has_column, json_of, kept_columns, listed, optional_text, text_of
from prime_megatron.curate.forms_math import Found
from prime_megatron.data.messages import kind_of
from prime_megatron.errors import InputError
from prime_megatron.generate.tables import Row

NO_TESTS, FILE_INPUT, PICTURES = "no_tests", "file_input", "pictures"
_PYTHON3 = 3
"""CodeContests' number of the language."""
_STARTER = "\n\nUse this starter code:\n```python\n{starter}\n```"


def apps(row: Row, origin: str, config: ReadConfig) -> Found:
    """question, solutions and input_output (JSON as text), perhaps starter_code, difficulty, problem_id."""
    return _with_function(row, origin, config, "apps")


def taco(row: Row, origin: str, config: ReadConfig) -> Found:
    """question, solutions and input_output (JSON as text), starter_code, difficulty, picture_num."""
    found = _with_function(row, origin, config, "taco")
    pictures = str(row.get("picture_num") or "0").strip()
    if pictures not in ("0", "0.0"):
        return _not(found, PICTURES, f"picture_num is {pictures}")
    return found


def code_contests(row: Row, origin: str, config: ReadConfig) -> Found:
    """description, public_tests, private_tests, generated_tests, solutions {language, solution}, input_file."""
    tests: list[dict[str, Any]] = []
    for name in ("public_tests", "private_tests", "generated_tests"):
        if name == "public_tests" or name in row:
            tests += listed(json_of(row, name, object, origin), ("input", "output"), name, origin)
    solutions = listed(json_of(row, "solutions", object, origin), ("language", "solution"), "solutions", origin)
    programs = [one["solution"] for one in solutions if one["language"] in (_PYTHON3, "PYTHON3")]
    extra = kept_columns(row, ("name", "difficulty", "cf_rating", "cf_contest_id", "cf_index"))
    found = _found(row, "description", origin, config, "code_contests", tests, programs, extra)
    file = optional_text(row, "input_file", origin) or optional_text(row, "output_file", origin)
    return _not(found, FILE_INPUT, f"reads or writes {file}") if file else found


def codeforces(row: Row, origin: str, config: ReadConfig) -> Found:
    """Statement and formats in parts (problem-description or description, ...), test_cases or official_tests, code."""
    statement = "problem-description" if "problem-description" in row else "description"
    parts = [text_of(row, statement, origin)]
    for title, names in (
        ("Input", ("input-specification", "input_format")),
        ("Output", ("output-specification", "output_format")),
        ("Note", ("note",)),
    ):
        text = next((optional_text(row, name, origin) for name in names if row.get(name)), "")
        parts += [f"{title}\n{text}"] if text else []
    examples = _examples(row, origin)
    for number, example in enumerate(examples, start=1):
        parts.append(f"Example {number}\nInput:\n{example['input']}\nOutput:\n{example['output']}")
    name = next((name for name in ("test_cases", "official_tests") if name in row), None)
    tests = examples if name is None else listed(json_of(row, name, object, origin), ("input", "output"), name, origin)
    code, language = optional_text(row, "code", origin), optional_text(row, "programmingLanguage", origin)
    accepted = optional_text(row, "verdict", origin) in ("", "OK")
    python3 = language in ("", "Python 3", "PyPy 3", "PyPy 3-64", "python", "python3")
    programs = [code] if code and python3 and accepted else []
    extra = kept_columns(row, ("contestId", "contest_id", "index", "name", "title", "rating"))
    whole = {"statement": "\n\n".join(part for part in parts if part)}
    return _found(whole, "statement", origin, config, "codeforces", tests or examples, programs, extra)


def _examples(row: Row, origin: str) -> list[dict[str, Any]]:
    if row.get("examples") is not None:
        return listed(json_of(row, "examples", object, origin), ("input", "output"), "examples", origin)
    inputs, outputs = row.get("demo-input"), row.get("demo-output")
    if inputs is None or outputs is None:
        return []
    return listed({"input": inputs, "output": outputs}, ("input", "output"), "demo-input and demo-output", origin)


def _with_function(row: Row, origin: str, config: ReadConfig, source: str) -> Found:
    """A row whose tests may call a function by name."""
    truth = json_of(row, "input_output", dict, origin) or {}
    programs = json_of(row, "solutions", list, origin) or []
    if not all(isinstance(program, str) for program in programs):
        raise InputError(f"{origin}: solutions must be a list of programs")
    inputs, outputs = truth.get("inputs") or [], truth.get("outputs") or []
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise InputError(f"{origin}: input_output must hold as many inputs as outputs, got {kind_of(inputs)}")
    tests = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    extra = kept_columns(row, ("problem_id", "difficulty", "url", "name", "source"))
    starter = optional_text(row, "starter_code", origin)
    question = text_of(row, "question", origin)
    whole = {"question": question + _STARTER.replace("{starter}", starter) if question and starter else question}
    return _found(whole, "question", origin, config, source, tests, programs, extra, truth.get("fn_name"))


def _found(
    row: Row,
    question: str,
    origin: str,
    config: ReadConfig,
    source: str,
    tests: list[dict[str, Any]],
    programs: list[str],
    extra: dict[str, Any],
    function: Any = None,
) -> Found:
    has_column(row, question, origin)
    tests = tests[: config.max_tests]
    truth: dict[str, Any] = {
        "inputs": [test["input"] for test in tests],
        "outputs": [test["output"] for test in tests],
    }
    if function:
        truth["fn_name"] = function
    text = json.dumps(truth, ensure_ascii=False) if tests else ""
    found = Found(
        text_of(row, question, origin), "code", source, text, programs[0] if programs else "",
        tuple(programs[: config.solutions_tried]), extra_info=extra,
    )  # fmt: skip
    return found if tests else _not(found, NO_TESTS, "the row has no tests")


def _not(found: Found, rule: str, why: str) -> Found:
    return Found(**{**vars(found), "why_not": (rule, why)})
