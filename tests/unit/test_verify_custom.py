"""A reward of one's own: found by its path, called by name in a worker process, and never the end of a run."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prime_megatron.errors import InputError
from prime_megatron.verify import FAILURES, VERDICTS, Answer, Verdict, VerifyOptions, build_verifiers, describe_custom
from prime_megatron.verify.custom import ARGUMENTS, RewardFunction, check_custom, judge

MODULE = '''
import json, os, sys, time

def share(response, ground_truth):
    """The share of the ground truth's words that the response has."""
    wanted = ground_truth.split()
    return sum(word in response.split() for word in wanted) / len(wanted)

def everything(**given):
    print("a print must not reach the pipe")
    wanted = {"response": "r", "ground_truth": "g", "prompt": "p", "data_source": "d", "ability": "all",
              "extra_info": {"index": 3, "tags": ["a", None]}}
    return given == wanted

def spoken(response, extra_info):
    return extra_info["language"] in response

def as_asked(response):
    """Returns, or does, what the response says."""
    match response:
        case "raise": raise ValueError("as asked")
        case "text": return "1.0"
        case "none": return None
        case "nan": return float("nan")
        case "infinite": return float("inf")
        case "above": return 1.5
        case "below": return -0.5
        case "die": os._exit(3)
        case "leave": sys.exit(0)
        case "sleep": time.sleep(600)
        case "grow": return len(bytearray(64 * 2**30))
        case "write":
            with open("written", "w") as file: file.write("x" * 100000)
            return 1.0
        case "environment": return "SECRET_TOKEN" not in os.environ
    return float(response)

def needs_more(response, temperature): return 1.0
def positional(response, /): return 1.0
def optional(response, temperature=1.0): return temperature == 1.0
constant = 0.5
'''


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with my_rewards.py, a package and modules that do not load."""
    (tmp_path / "my_rewards.py").write_text(MODULE)
    (tmp_path / "group_of_rewards").mkdir()
    (tmp_path / "group_of_rewards" / "__init__.py").write_text("")
    (tmp_path / "group_of_rewards" / "spelling.py").write_text("def score(response): return True\n")
    (tmp_path / "broken.py").write_text("import os\n\n1 / 0\n")
    (tmp_path / "lacking.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.chdir(tmp_path)
    # In place of test order: modules and the working directory that this process may have met before.
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    for name in ("my_rewards", "group_of_rewards", "group_of_rewards.spelling", "broken", "lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("my_rewards", "group_of_rewards", "group_of_rewards.spelling", "broken", "lacking"):
        sys.modules.pop(name, None)


def scores(custom: dict[str, str], *answers: Answer, timeout_s: float = 60.0) -> list[Verdict]:
    with build_verifiers(VerifyOptions(num_workers=1, timeout_s=timeout_s), custom) as verifiers:
        return verifiers.score(answers)


def test_rewards_from_the_working_directory(rewards: Path) -> None:
    custom = {
        "words": "my_rewards:share",
        "all": "my_rewards:everything",
        "spelling": "group_of_rewards.spelling:score",
    }
    info: dict[str, Any] = {"index": 3, "tags": ["a", None]}
    verdicts = scores(
        custom,
        Answer("words", "the cat sat", "cat dog"),
        Answer("words", "nothing", "cat dog"),
        Answer("words", "dog cat", "cat dog"),
        Answer("all", "r", "g", "p", "d", info),
        Answer("spelling", "any", ""),
        Answer("exact", "\\boxed{7}", "7"),
    )
    assert [(v.score, v.verdict) for v in verdicts] == [
        (0.5, "partial"), (0.0, "wrong"), (1.0, "correct"), (1.0, "correct"), (1.0, "correct"), (1.0, "correct"),
    ]  # fmt: skip
    check_custom(custom)


def test_failures_score_0_are_told_apart_and_end_nothing(rewards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    expected = {
        "raise": "error", "text": "wrong_type", "none": "wrong_type", "nan": "not_finite", "infinite": "not_finite",
        "above": "out_of_range", "below": "out_of_range", "die": "died", "leave": "died", "grow": "error",
        "environment": "correct", "0.25": "partial",
    }  # fmt: skip
    verdicts = scores({"task": "my_rewards:as_asked"}, *(Answer("task", response, "") for response in expected))
    assert {response: v.verdict for response, v in zip(expected, verdicts, strict=True)} == expected
    assert [v.score for v in verdicts] == [0.0] * 10 + [1.0, 0.25]
    assert "ValueError" in verdicts[0].reason and "as asked" in verdicts[0].reason
    assert {v.verdict for v in verdicts[:10]} | {"timeout"} == set(FAILURES) and set(FAILURES) < set(VERDICTS)


def test_a_reward_that_takes_too_long_costs_its_own_answer_alone(rewards: Path) -> None:
    slow, quick = Answer("task", "sleep", ""), Answer("task", "0.5", "")
    verdicts = scores({"task": "my_rewards:as_asked"}, slow, quick, timeout_s=2.0)
    assert [(v.score, v.verdict) for v in verdicts] == [(0.0, "timeout"), (0.5, "partial")]


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_reward_writes_no_file(rewards: Path) -> None:
    (verdict,) = scores({"task": "my_rewards:as_asked"}, Answer("task", "write", ""))
    assert verdict.verdict == "error"
    assert (rewards / "written").read_text() == ""


def test_it_takes_the_place_of_a_built_in_ability_only_where_it_is_named(rewards: Path) -> None:
    wrong = Answer("math", "\\boxed{1}", "2")
    assert scores({"other": "my_rewards:optional"}, wrong)[0].score == 0.0
    assert scores({"math": "my_rewards:optional"}, wrong)[0].score == 1.0
    assert scores({"code": "my_rewards:optional"}, Answer("code", "x", "y"))[0].score == 1.0
    assert describe_custom({"math": "a:b", "other": "c:d"}) == [
        "verify: ability 'math' is scored by a:b, in place of the built-in one",
        "verify: ability 'other' is scored by c:d",
    ]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_rewards", "verify.custom.task: 'my_rewards' is not of the form package.module:name"),
        (
            "my_rewards.py:share",
            "verify.custom.task: no module 'my_rewards.py'; my_rewards is a module and not a package",
        ),
        (
            "my_reward:share",
            "verify.custom.task: no module 'my_reward'; did you mean 'my_rewards'? the working directory",
        ),
        (
            "group_of_rewards.speling:score",
            "no module 'group_of_rewards.speling'; did you mean 'spelling'? package group_of_rewards has: spelling",
        ),
        ("my_rewards:shares", "has no 'shares'; did you mean 'share'? it has: as_asked, everything"),
        ("my_rewards:constant", "is a float; name something that can be called"),
        (
            "broken:score",
            "verify.custom.task: broken fails while it is imported: ZeroDivisionError: division by zero (",
        ),
        ("lacking:score", "verify.custom.task: lacking imports 'a_package_that_is_not_here', which is not installed"),
        ("my_rewards:needs_more", "needs 'temperature'; a reward is given response, ground_truth, prompt,"),
        ("my_rewards:positional", "needs 'response'; a reward is given response"),
    ],
)
def test_what_is_wrong_with_a_path_is_one_line(rewards: Path, path: str, message: str) -> None:
    with pytest.raises(InputError) as here:
        check_custom({"task": path})
    assert message in str(here.value) and "\n" not in str(here.value)
    with build_verifiers(custom={"task": path}) as verifiers, pytest.raises(InputError) as there:
        verifiers.try_custom()
    assert message in str(there.value), "a worker process says the same"


def test_a_reward_that_no_longer_loads_costs_the_answer_and_not_the_run(rewards: Path) -> None:
    (verdict,) = scores({"task": "broken:score"}, Answer("task", "x", ""))
    assert (verdict.score, verdict.verdict) == (0.0, "died")
    assert "ZeroDivisionError" in verdict.reason


def test_it_is_called_with_what_it_asks_for(rewards: Path) -> None:
    request = dict(zip(ARGUMENTS, ("en, please", "g", "p", "d", "task", {"language": "en"}), strict=True))
    assert RewardFunction("my_rewards:spoken", "key").grade(request) == (1.0, "correct", "the reward is 1")
    assert RewardFunction("my_rewards:optional", "key").grade(request)[0] == 1.0


@pytest.mark.parametrize(
    ("value", "score", "verdict"),
    [
        (True, 1.0, "correct"), (False, 0.0, "wrong"), (1, 1.0, "correct"), (0.3, 0.3, "partial"),
        (np.float32(0.5), 0.5, "partial"), (np.True_, 1.0, "correct"), (torch.tensor(0.25), 0.25, "partial"),
        (np.nan, 0.0, "not_finite"), (-1e-9, 0.0, "out_of_range"), (1.0000001, 0.0, "out_of_range"),
        ([1.0], 0.0, "wrong_type"), (1 + 0j, 0.0, "wrong_type"), (np.ones(2), 0.0, "wrong_type"),
    ],
)  # fmt: skip
def test_what_a_returned_value_is_worth(value: Any, score: float, verdict: str) -> None:
    assert judge(value)[:2] == (score, verdict)


def test_torch_fits_into_a_worker(rewards: Path) -> None:
    (rewards / "heavy.py").write_text(
        textwrap.dedent("""
        import torch

        def score(response): return torch.tensor(0.75)
        """)
    )
    (verdict,) = scores({"task": "heavy:score"}, Answer("task", "x", ""))
    assert (verdict.score, verdict.verdict) == (0.75, "partial"), verdict.reason
