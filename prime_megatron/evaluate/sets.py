"""A set's file as questions: counted, hashed, cut as the suite says, worded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prime_megatron.data.messages import Message
from prime_megatron.errors import InputError
from prime_megatron.evaluate.code_forms import FORMS
from prime_megatron.evaluate.item import Item, Problem, fenced
from prime_megatron.evaluate.suite import SetConfig, Suite
from prime_megatron.generate.questions import Question, check_ids, question_of
from prime_megatron.generate.sample import ChatOrText
from prime_megatron.generate.tables import Row, file_digest, read_table

Rows = list[tuple[str, Row]]


def read_set(name: str, config: SetConfig, folder: str) -> list[Item]:
    """The items of a set, in the file's order.

    Raises:
        InputError: the file is missing (with where it comes from), has another hash or row count, or a row cannot be
            used; one line.
    """
    path = Path(folder) / config.file
    if not path.is_file():
        source = f"; it comes from {config.comes_from}" if config.comes_from else ""
        raise InputError(f"set {name}: {path}: no such file{source}")
    if config.sha256 is not None and (found := file_digest(path)) != config.sha256:
        raise InputError(
            f"set {name}: {path}: another file than the suite's, sha256 {found[:16]}... and not "
            f"{config.sha256[:16]}...; take it from {config.comes_from or 'its source'}, or give the suite's sha256"
        )
    rows = read_table(path)
    _count(name, path, "rows", len(rows), config.rows)
    numbered = [(place, origin, row) for place, (origin, row) in enumerate(rows) if _keeps(config, row, origin)]
    _count(name, path, "rows left by keep and the dates", len(numbered), config.kept)
    if not numbered:
        raise InputError(f"set {name}: {path}: no row is left by keep and the dates")
    system = _system(name, config, folder)
    items = [_item(name, config, place, origin, row, system) for place, origin, row in numbered[: config.limit]]
    check_ids([item.question for item in items])
    return items


def read_sets(suite: Suite) -> dict[str, list[Item]]:
    """Every set of a suite. Raises InputError as `read_set`."""
    return {name: read_set(name, config, suite.folder) for name, config in suite.sets.items()}


def _count(name: str, path: Path, what: str, found: int, known: int | None) -> None:
    if known is not None and found != known:
        raise InputError(f"set {name}: {path}: {found} {what}, the suite knows {known}; is it the same file?")


def _keeps(config: SetConfig, row: Row, origin: str) -> bool:
    for column, pattern in config.keep.items():
        if re.search(pattern, str(_column(row, column, origin))) is None:
            return False
    if config.first_date is None and config.last_date is None:
        return True
    day = str(_column(row, "contest_date", origin))[:10]
    return (config.first_date or day) <= day <= (config.last_date or day)


def _system(name: str, config: SetConfig, folder: str) -> str | None:
    if config.system_file is None:
        return config.system
    path = Path(folder) / config.system_file
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InputError(f"set {name}: {path}: no system prompt to read there") from None
    return text.replace("\\n", "\n") if config.system_newlines == "decoded" else text


def _item(name: str, config: SetConfig, place: int, origin: str, row: Row, system: str | None) -> Item:
    if config.form == "prompts":
        question = question_of(row, origin, place, system)
        if not question.ability or not question.ground_truth:
            raise InputError(f"{origin}: no ability and ground truth to grade by")
        return Item(question)
    if config.form == "math":
        return _math(name, config, place, origin, row, system)
    problem = FORMS[config.form](row, origin)
    return _program(name, config, origin, problem, system)


def _math(name: str, config: SetConfig, place: int, origin: str, row: Row, system: str | None) -> Item:
    truth = _answer(_column(row, config.answer, origin), config.answer, origin)
    text = _column(row, config.question, origin)
    if not isinstance(text, str) or not text:
        raise InputError(f"{origin}: {config.question} must be text that is not empty")
    row_id = str(place) if config.id is None else str(_column(row, config.id, origin))
    solution = truth if config.solution is None else _answer(_column(row, config.solution, origin), "solution", origin)
    prompt = worded(config, text, system)
    question = Question(row_id, prompt, origin, config.grader, truth, data_source=name)
    return Item(question, canonical=_canonical(config, truth, solution))


def _canonical(config: SetConfig, truth: str, solution: str) -> str:
    """The solution, with its answer where the grader looks for it."""
    if config.grader == "exact":
        return f"<answer>{truth}</answer>"
    if "\\boxed" in solution:
        return solution
    answer = (solution if "####" in solution else truth).rpartition("####")[2].strip()
    return f"{solution}\n\\boxed{{{answer}}}"


def _program(name: str, config: SetConfig, origin: str, problem: Problem, system: str | None) -> Item:
    prompt = worded(config, problem.question, system)
    question = Question(problem.id, prompt, origin, "code", problem.truth, data_source=name)
    canonical = None if problem.solution is None else fenced(problem.solution)
    return Item(question, problem.before, problem.after, problem.entry_point, problem.start, canonical)


def worded(config: SetConfig, text: str, system: str | None) -> ChatOrText:
    """The set's wording of a question."""
    user = config.prompt.replace("{question}", text)
    if not config.chat:
        return user
    messages = (Message("user", user),)
    return messages if system is None else (Message("system", system), *messages)


def _answer(value: Any, key: str, origin: str) -> str:
    """A number, a text, or a list of one of these, as text."""
    if isinstance(value, (list, tuple)):
        if len(value) != 1 and key != "solution":
            raise InputError(f"{origin}: {key} holds {len(value)} answers; one is needed")
        value = value[0] if value else None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
        raise InputError(f"{origin}: {key} must be a number or text that is not empty")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _column(row: Row, key: str, origin: str) -> Any:
    if row.get(key) is None:
        raise InputError(f"{origin}: no column {key}; the row has {', '.join(row) or 'no columns'}")
    return row[key]
