"""A suite: named sets of questions, each with its file, wording, decoding and grader, as YAML.

seed: 0                    # of the random streams
block: 256                 # samples that are asked together
defaults: {temperature: 0}  # below every set
fixed: {...}               # laid over every set where the suite is asked as "fixed"; likewise published
sets:
  gsm8k:
    file: gsm8k_test.jsonl
    prompt: "{question}"
    fixed: {max_tokens: 8192}   # over this set alone
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from prime_megatron.config.base import Section
from prime_megatron.config.explain import explain
from prime_megatron.config.rollout import TemplateArgument
from prime_megatron.config.strict_yaml import Document, KeyPath, parse_file, parse_text
from prime_megatron.errors import InputError
from prime_megatron.evaluate.patterns import pattern_problem

As = Literal["published", "fixed"]
MODES: tuple[As, ...] = ("published", "fixed")
_TOP = ("seed", "block", "defaults", "published", "fixed", "sets")
SEED, BLOCK = 0, 256


class SetConfig(Section):
    """One set of questions."""

    file: str
    """Below the data folder, or below the suite's own; .jsonl, .json, .parquet, .gz."""
    comes_from: str = ""
    """Where the file is published, for the error of a missing one."""
    rows: PositiveInt | None = None
    """Rows of the file; another count is refused."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Of the file; another one is refused."""
    form: Literal["math", "prompts", "humaneval", "mbpp", "leetcode", "livecodebench"] = "math"
    """What a row is: a question and an answer by the columns below; a ready prompt in our own schema; or a published
    form of programming problems."""
    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the answer: a number, text, a solution with a box or "####", or a list of one of these."""
    solution: str | None = None
    """Column of a worked solution, for checks of the grader; none: the answer itself."""
    id: str | None = None
    """Column of the row's name; none: its place in the file, from 0."""
    grader: Literal["math", "exact"] = "math"
    """How answers of form math are compared."""
    keep: dict[str, str] = Field(default={})
    """Column: regular expression that must be found in it."""
    first_date: str | None = Field(default=None, pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
    """livecodebench: problems from this day on."""
    last_date: str | None = Field(default=None, pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
    """livecodebench: problems up to this day."""
    kept: PositiveInt | None = None
    """Rows that are left by keep and the dates; another count is refused."""
    limit: PositiveInt | None = None
    """Ask the first n questions; none: all."""
    prompt: str = "{question}"
    """The user's message; {question} stands for the question."""
    system: str | None = None
    """System message."""
    system_file: str | None = None
    """The same from a file below the data folder."""
    system_newlines: Literal["as_written", "decoded"] = "as_written"
    """decoded: the two characters backslash and n of the file are a line break."""
    chat: bool = True
    """Ask through the model's chat template; false: the plain text, for a base model."""
    template_kwargs: dict[str, TemplateArgument] = Field(default={})
    """More arguments of the chat template, such as {enable_thinking: false}; data.template_kwargs is not read here."""
    n: PositiveInt = 1
    """Samples to each question."""
    temperature: NonNegativeFloat = 0.0
    """0: greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus."""
    max_tokens: PositiveInt = 4096
    """Of a response; cut to what the model holds."""
    context: PositiveInt | None = None
    """Longest prompt and response, where it is less than the model's."""
    stop: tuple[str, ...] = ()
    """Texts that end a response."""
    answer_pattern: str | None = None
    """Regular expression with one group: its last match is the answer, in place of the last box."""
    every: PositiveInt | None = None
    """In training: steps between evaluations on this set; none: eval.every."""


class Suite(Section):
    """A suite, read and resolved."""

    name: str
    seed: NonNegativeInt = SEED
    block: PositiveInt = BLOCK
    mode: As
    folder: str
    """Where relative files lie."""
    sets: dict[str, SetConfig]

    def digest(self) -> str:
        """sha256 of what is asked, wherever the files lie."""
        values = self.model_dump(mode="json", exclude={"folder"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def known_suites() -> list[str]:
    """The package's own."""
    folder = resources.files("prime_megatron.evaluate") / "suites"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_suite(name: str, data: str | None, mode: As, over: dict[str, Any], only: tuple[str, ...] = ()) -> Suite:
    """A suite by name or file.

    Args:
        name: one of the package's, or a YAML file.
        data: folder of the sets' files; None: the YAML file's own.
        mode: which of the suite's two wordings.
        over: keys of the user's, over every set.
        only: names of the sets to keep; none: all.

    Raises:
        InputError: no such suite, a wrong key or value, an unknown set; one line.
    """
    document, label = _document(name)
    value = document.value
    for key in value:
        if key not in _TOP:
            raise InputError(f"{label}:{document.lines[key,]}: unknown key {key}; the keys are {', '.join(_TOP)}")
    sets = value.get("sets")
    if not isinstance(sets, dict) or not sets:
        raise InputError(f"{label}: no sets; a suite needs `sets:` with a section for each")
    unknown = [name for name in only if name not in sets]
    if unknown:
        raise InputError(f"{label}: no set {unknown[0]!r}; the suite has {', '.join(sets)}")
    if data is None and name in known_suites():
        raise InputError(f"suite {name}: name the folder of its files with --data (eval.suite_data in training)")
    chosen = {set_name: _set(document, label, set_name, mode, over) for set_name in sets if set_name in (only or sets)}
    try:
        return Suite(
            name=name if name in known_suites() else Path(name).stem,
            seed=value.get("seed", SEED),
            block=value.get("block", BLOCK),
            mode=mode,
            folder=str(Path(name).parent) if data is None else data,
            sets=chosen,
        )
    except ValidationError as error:
        raise InputError(explain(Suite, error.errors(include_url=False)[0], _lines(document, label), label)) from None


def _document(name: str) -> tuple[Document, str]:
    if name in known_suites():
        text = (resources.files("prime_megatron.evaluate") / "suites" / f"{name}.yaml").read_text(encoding="utf-8")
        return parse_text(text, f"{name}.yaml"), f"{name}.yaml"
    if not Path(name).is_file():
        raise InputError(f"no suite {name!r}: name a YAML file, or one of {', '.join(known_suites())}")
    return parse_file(name), name


def _lines(document: Document, label: str) -> dict[KeyPath, str]:
    return {key: f"{label}:{line}" for key, line in document.lines.items()}


def _set(document: Document, label: str, name: str, mode: As, over: dict[str, Any]) -> SetConfig:
    """Defaults below the set, the mode over it, the user's keys over all."""
    lines = _lines(document, label)
    merged: dict[str, Any] = {}
    origin: dict[KeyPath, str] = {}
    for path in (("defaults",), ("sets", name), (mode,), ("sets", name, mode)):
        layer: Any = document.value
        for part in path:
            layer = layer[part] if isinstance(layer, dict) and part in layer else {}
        if not isinstance(layer, dict):
            raise InputError(f"{lines[path]}: {'.'.join(path)} must be a section of `key: value` lines")
        for key, value in layer.items():
            if path == ("sets", name) and key in MODES:
                continue
            merged[key] = value
            origin[key,] = lines[(*path, key)]
    merged |= over
    origin |= {(key,): f"--{key.replace('_', '-')}" for key in over}
    try:
        config = SetConfig.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        # A key that is unknown explains one that is missing.
        details = sorted(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
        raise InputError(f"set {name}, {explain(SetConfig, details[0], origin, label)}") from None
    problem = _problem(config)
    if problem is not None:
        key, what = problem
        raise InputError(f"{origin.get((key,), label)}: set {name}: {what}")
    return config


def _problem(config: SetConfig) -> tuple[str, str] | None:
    """(key, what is wrong between keys); None: nothing."""
    if config.temperature == 0 and config.n > 1:
        return "n", f"{config.n} samples at temperature 0 would be one; set n to 1, or a temperature"
    if "{question}" not in config.prompt and config.form != "prompts":
        return "prompt", "the prompt has no {question}"
    if config.system is not None and config.system_file is not None:
        return "system_file", "system and system_file are both given; keep one"
    if not config.chat and (config.system is not None or config.system_file is not None):
        return "chat", "a plain text has no system message; leave it out, or set chat to true"
    if "" in config.stop:
        return "stop", "an empty text ends every response at once"
    for key, pattern, groups in _patterns(config):
        problem = pattern_problem(pattern, groups)
        if problem is not None:
            return key, problem
    return None


def _patterns(config: SetConfig) -> list[tuple[str, str, int | None]]:
    found: list[tuple[str, str, int | None]] = [("keep", pattern, None) for pattern in config.keep.values()]
    return found if config.answer_pattern is None else [*found, ("answer_pattern", config.answer_pattern, 1)]
