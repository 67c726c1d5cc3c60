"""Published forms of problems with an answer: NuminaMath-CoT, GSM8K, MATH, plain columns, Eurus-2-RL-Data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prime_megatron.config.curate import ReadConfig
from prime_megatron.curate.columns import (
    answer_of,
    first_column,
    flag_of,
    has_column,
    kept_columns,
    optional_text,
    text_of,
)
from prime_megatron.data.messages import Message, read_messages
from prime_megatron.errors import InputError
from prime_megatron.generate.tables import Row
from prime_megatron.verify.boxed import last_boxed

NO_BOX, UNCLOSED_BOX, EMPTY_BOX, NO_TRUTH, NO_PROBLEM = "no_box", "unclosed_box", "empty_box", "no_truth", "no_problem"
QUESTIONS = ("problem", "question", "prompt", "Question", "Problem")
ANSWERS = ("answer", "ground_truth", "expected_answer", "final_answer", "target", "Answer", "solution")


@dataclass(frozen=True)
class Found:
    """What a published row holds."""

    problem: str
    ability: str
    data_source: str
    truth: str = ""
    solution: str = ""
    programs: tuple[str, ...] = ()
    """Reference solutions in Python 3 (ability code)."""
    prompt: tuple[Message, ...] | None = None
    """The chat, where the source has one; None: it is worded from the problem."""
    extra_info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    solvable: bool | None = None
    why_not: tuple[str, str] | None = None
    """(rule, why) where the row cannot be used."""


def numina(row: Row, origin: str, config: ReadConfig) -> Found:
    """problem, solution, source (and messages): the answer is the last box of the solution."""
    problem, solution = text_of(row, "problem", origin), text_of(row, "solution", origin)
    source = optional_text(row, "source", origin)
    truth, why_not = _boxed(solution)
    name = f"numina_{source}" if source else "numina"
    return Found(problem, "math", name, truth, solution, why_not=why_not)


def gsm8k(row: Row, origin: str, config: ReadConfig) -> Found:
    """question, answer ("... <<4*5=20>>20 ... #### 20")."""
    problem, answer = text_of(row, "question", origin), text_of(row, "answer", origin)
    solution, mark, final = answer.rpartition("####")
    truth = final.strip().replace(",", "").removeprefix("$") if mark else ""
    worked = re.sub(r"<<[^<>\n]*>>", "", solution).strip()
    return Found(
        problem, config.ability, "gsm8k", truth, f"{worked}\nThe answer is \\boxed{{{truth}}}." if truth else worked
    )


def math(row: Row, origin: str, config: ReadConfig) -> Found:
    """problem, solution with a box, or answer; level, type (or subject)."""
    problem = text_of(row, "problem", origin)
    extra = kept_columns(row, ("level", "type", "subject", "difficulty", "unique_id"))
    solution = optional_text(row, "solution", origin)
    name = next((name for name in ("answer", "expected_answer") if name in row), None)
    if name is not None:
        return Found(problem, config.ability, "math", answer_of(row, name, origin), solution, extra_info=extra)
    has_column(row, "solution", origin)
    truth, why_not = _boxed(solution)
    return Found(problem, config.ability, "math", truth, solution, extra_info=extra, why_not=why_not)


def plain(row: Row, origin: str, config: ReadConfig) -> Found:
    """A question and an answer, by the columns of the config; perhaps solution, data_source, solvable."""
    question = config.question or first_column(row, QUESTIONS, "the question", origin)
    problem, prompt = _question(row, question, origin)
    needed = config.without_truth == "drop" or config.answer is not None
    answer = config.answer or (first_column(row, ANSWERS, "the answer", origin) if needed else _any(row, ANSWERS))
    given = "" if answer is None else answer_of(row, answer, origin)
    truth, solution, why_not = given, given, None
    if answer == "solution" or "\\boxed" in given:
        truth, why_not = _boxed(given)
    elif "####" in given:
        truth = given.rpartition("####")[2].strip()
    else:
        solution = optional_text(row, "solution", origin)
    source = optional_text(row, "data_source", origin) or optional_text(row, "source", origin) or "plain"
    ability = optional_text(row, "ability", origin) or config.ability
    return Found(
        problem, ability, source, truth, solution, prompt=prompt, solvable=flag_of(row, "solvable", origin),
        why_not=why_not,
    )  # fmt: skip


def eurus(row: Row, origin: str, config: ReadConfig) -> Found:
    """data_source, prompt (a chat), ability, reward_model.ground_truth, extra_info: a row in our own schema."""
    has_column(row, "prompt", origin)
    messages = read_messages(row["prompt"], "prompt", origin)
    if messages[-1].role != "user":
        raise InputError(f"{origin}: prompt ends with a message of {messages[-1].role}; the last must be user's")
    reward = row.get("reward_model")
    if not isinstance(reward, dict):
        raise InputError(f"{origin}: reward_model must be an object with ground_truth")
    extra = row.get("extra_info")
    if extra is not None and not isinstance(extra, dict):
        raise InputError(f"{origin}: extra_info must be an object")
    solution = optional_text(row, "solution", origin)
    return Found(
        problem=optional_text(row, "problem", origin) or without_instruction(messages[-1].content),
        ability=text_of(row, "ability", origin),
        data_source=text_of(row, "data_source", origin),
        truth=answer_of(reward, "ground_truth", f"{origin}: reward_model"),
        solution=solution,
        prompt=messages,
        extra_info={key: value for key, value in (extra or {}).items() if value is not None},
        solvable=flag_of(row, "solvable", origin),
    )


_INSTRUCTION = re.compile(
    r"(?:\n[ \t]*\n(?:[^\n]{1,200}\n)?|\n+)[^\n]{0,200}(?:\\boxed\s*\{|```python)[^\n]{0,120}(?:\n[^\n]{0,80}){0,3}\Z",
    re.IGNORECASE,
)


def without_instruction(text: str) -> str:
    r"""A user message without a last paragraph that says how to write the answer (one that names \boxed or a block)."""
    return _INSTRUCTION.sub("", text).strip() or text.strip()


def _question(row: Row, name: str, origin: str) -> tuple[str, tuple[Message, ...] | None]:
    """(text, chat) of a column with a question: text, or a chat whose last user message it is."""
    has_column(row, name, origin)
    if not isinstance(row[name], list):
        return text_of(row, name, origin), None
    messages = read_messages(row[name], name, origin)
    if messages[-1].role != "user":
        raise InputError(f"{origin}: {name} ends with a message of {messages[-1].role}; the last must be user's")
    return without_instruction(messages[-1].content), messages


def _any(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _boxed(solution: str) -> tuple[str, tuple[str, str] | None]:
    """(answer, why there is none) of a solution's last box."""
    found = last_boxed(solution)
    if found.text is not None:
        return found.text, None
    rule = NO_BOX if found.start < 0 else UNCLOSED_BOX if "not closed" in found.problem else EMPTY_BOX
    return "", (rule, f"the solution: {found.problem}")
