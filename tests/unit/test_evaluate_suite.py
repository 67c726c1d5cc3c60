"""Suites: what a YAML says, in which order its layers lie, and every wrong one in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prime_megatron.errors import InputError
from prime_megatron.evaluate.suite import MODES, Suite, known_suites, load_suite

TEXT = """\
seed: 3
block: 8
defaults:
  max_tokens: 100
  prompt: "{question}!"
published:
  top_p: 0.9
fixed:
  top_p: 0.8
sets:
  one:
    file: one.jsonl
    n: 2
    temperature: 0.5
    published: {max_tokens: 50}
  two:
    file: two.jsonl
    top_p: 0.5
    max_tokens: 7
"""


def load(tmp_path: Path, text: str = TEXT, mode: Any = "fixed", only: tuple[str, ...] = (), **over: Any) -> Suite:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return load_suite(str(path), None, mode, over, only)


def test_layers_lie_over_each_other(tmp_path: Path) -> None:
    published, fixed = load(tmp_path, mode="published"), load(tmp_path)
    assert (fixed.name, fixed.seed, fixed.block, fixed.folder) == ("own", 3, 8, str(tmp_path))
    assert [published.sets[name].max_tokens for name in ("one", "two")] == [50, 7]
    assert [fixed.sets[name].max_tokens for name in ("one", "two")] == [100, 7]
    assert (published.sets["two"].top_p, fixed.sets["two"].top_p) == (0.9, 0.8)
    assert fixed.sets["two"].prompt == "{question}!"
    assert load(tmp_path, max_tokens=9, mode="published").sets["one"].max_tokens == 9
    assert list(load(tmp_path, only=("two",)).sets) == ["two"]
    assert published.digest() != fixed.digest()
    assert fixed.digest() == load(tmp_path).digest()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("seed: 3", "sed: 3", "own.yaml:1: unknown key sed"),
        ("seed: 3", "seed: -1", "own.yaml:1: seed: expected a value greater than or equal to 0"),
        ("file: one.jsonl", "fle: one.jsonl", "own.yaml:12: unknown key fle; did you mean file?"),
        ("    file: one.jsonl\n", "", "set one, "),
        ("max_tokens: 7", "max_tokens: 7.5", "own.yaml:19: max_tokens: expected a whole number"),
        ("max_tokens: 7", "form: gsm", "own.yaml:19: form: expected one of math"),
        ("temperature: 0.5", "temperature: 0", "own.yaml:13: set one: 2 samples at temperature 0"),
        ("max_tokens: 7", "prompt: no", "own.yaml:19: set two: the prompt has no {question}"),
        ("max_tokens: 7", "answer_pattern: 'A: ('", "own.yaml:19: set two: 'A: (' is no regular expression"),
        ("max_tokens: 7", "answer_pattern: 'A: .'", "own.yaml:19: set two: 'A: .' has 0 groups; it needs 1"),
        ("max_tokens: 7", "stop: ['']", "own.yaml:19: set two: an empty text"),
        ("max_tokens: 7", "sha256: abc", "own.yaml:19: sha256: "),
        ("max_tokens: 7", "first_date: '2024'", "own.yaml:19: first_date: "),
        ("published:\n  top_p: 0.9", "published: 3", "own.yaml:6: published must be a section"),
        (TEXT[TEXT.index("sets:") :], "", "no sets"),
    ],
)
def test_a_wrong_suite_is_one_line(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in TEXT
    with pytest.raises(InputError) as refused:
        load(tmp_path, TEXT.replace(before, after), mode="published")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_suite_or_set_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no suite 'mth': name a YAML file, or one of code, math, prime"):
        load_suite("mth", None, "fixed", {})
    with pytest.raises(InputError, match="no set 'three'; the suite has one, two"):
        load(tmp_path, only=("one", "three"))
    with pytest.raises(InputError, match="name the folder of its files with --data"):
        load_suite("prime", None, "fixed", {})


def test_the_package_has_the_suites_of_the_paper() -> None:
    assert known_suites() == ["code", "math", "prime"]
    for name in known_suites():
        for mode in MODES:
            suite = load_suite(name, "data", mode, {})
            assert all(config.comes_from for config in suite.sets.values())
            assert suite.block == 256
    prime = load_suite("prime", "data", "published", {})
    assert list(prime.sets) == ["aime24", "amc", "math500", "minerva", "olympiadbench", "leetcode", "livecodebench"]
    limits = [prime.sets[name].max_tokens for name in prime.sets]
    assert limits == [4096, 4096, 8192, 4096, 4096, 8192, 4096]
    lcb = prime.sets["livecodebench"]
    assert (lcb.n, lcb.temperature, lcb.top_p, lcb.context, lcb.kept) == (10, 0.2, 0.95, 4096, 511)
    assert all(config.temperature == 0 for name, config in prime.sets.items() if name != "livecodebench")
    fixed = load_suite("prime", "data", "fixed", {})
    assert {config.system_newlines for config in prime.sets.values()} == {"as_written"}
    assert {config.system_newlines for config in fixed.sets.values()} == {"decoded"}
    assert fixed.sets["livecodebench"].context is None
