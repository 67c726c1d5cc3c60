"""Ground truths against themselves: what no answer can equal is told before a run begins."""

import json
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from prime_megatron.config import DataConfig
from prime_megatron.errors import InputError
from prime_megatron.run import truths
from prime_megatron.run.inputs import _proven, _usable_rows
from prime_megatron.verify import Verifiers, VerifyOptions, build_verifiers

ROWS = [  # (ability, ground truth, what is said of it; "" for nothing)
    ("math", "so it is\n#### 1,250", ""),
    ("math", "\\[8\\]", ""),
    ("math", "Answer: 6", ""),
    ("math", "D. 12", ""),
    ("math", "(9)_{10}", ""),
    ("math", "\\text{Evelyn}", ""),
    ("math", "\\text{no solution}", ""),
    ("math", "x^2+\\frac{1}{x}", ""),
    ("math", "(2,3]\\cup\\{7\\}", ""),
    ("math", "proof of concept", ""),
    ("math", "steps ####", "it is blank"),
    ("math", "\\( \\)", "it is blank"),
    ("math", "nan", "it is nan"),
    ("math", "\\text{See the diagram.}", "stands where an answer is missing"),
    ("math", "Proof omitted", "stands where an answer is missing"),
    ("math", "\\text{not found}", "stands where an answer is missing"),
    ("math", "?", "stands where an answer is missing"),
    ("math", "\\frac{1}{2", "its braces do not close"),
    ("exact", "7 8", ""),
    ("exact", " \n", "it is blank"),
]


@pytest.fixture(scope="module")
def verifiers() -> Iterator[Verifiers]:
    with build_verifiers(VerifyOptions(num_workers=1, timeout_s=20.0)) as verifiers:
        yield verifiers


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def data(tmp_path: Path, rows: list[tuple[str, str]], bad_truth: str) -> DataConfig:
    lines = [
        {"prompt": [{"role": "user", "content": "?"}], "ability": a, "reward_model": {"ground_truth": t}}
        for a, t in rows
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DataConfig.model_validate({"train": (str(file),), "bad_truth": bad_truth})


@pytest.mark.parametrize(("ability", "truth", "said"), ROWS)
def test_what_no_answer_can_equal_is_told(verifiers: Verifiers, ability: str, truth: str, said: str) -> None:
    problem = verifiers.truth_problem(ability, truth)
    assert problem is None if not said else problem is not None and said in problem


def test_the_first_bad_rows_are_named_or_left_out(tmp_path: Path, verifiers: Verifiers) -> None:
    rows = [
        ("math", "4"),
        *[("math", "not found")] * 3,
        ("math", " "),
        ("math", "5"),
        *[("exact", "nan"), ("math", "nan")] * 3,
    ]
    refusing = data(tmp_path, rows, "refuse")
    with pytest.raises(InputError) as caught:
        _usable_rows(refusing.train, refusing, verifiers)
    message = str(caught.value)
    assert "\n" not in message
    assert all(f"rows.jsonl, row {row}: ground truth: " in message for row in (2, 3, 4, 5, 8))
    assert "row 10" not in message
    assert message.endswith("; and 2 more rows (data.bad_truth=skip leaves such rows out)")
    skipping = data(tmp_path, rows, "skip")
    usable = _usable_rows(skipping.train, skipping, verifiers)
    assert [row.ground_truth for row in usable.rows] == ["4", "5", "nan", "nan", "nan"]
    assert usable.num_left_out == 7
    assert "7 data.bad_truth: rows without a usable ground truth left out" in usable.warnings
    assert any("rows.jsonl, row 2: " in line and "row 5" in line for line in usable.warnings)


def test_truths_that_need_it_are_computed_once(tmp_path: Path, verifiers: Verifiers, alone: None) -> None:
    numbers = data(tmp_path, [("math", "4"), ("math", "\\text{B}"), ("math", "3 hours"), ("exact", "a+b")], "skip")
    proof = truths.prove_truths(_usable_rows(numbers.train, numbers, verifiers).rows, verifiers)
    assert (proof.remark, proof.problems) == (None, {})
    assert verifiers.by_ability["math"].pool.pids() == []  # type: ignore[attr-defined]
    config = data(tmp_path, [("math", "a+b"), ("math", "a+b"), ("math", "(\\sqrt{2},3)"), ("math", "1/0")], "skip")
    usable = _usable_rows(config.train, config, verifiers)
    proof = truths.prove_truths(usable.rows, verifiers)
    assert proof.remark is not None
    assert proof.remark.startswith("data.bad_truth: 3 ground truths computed against themselves in ")
    assert [truth for _, truth in proof.problems] == ["1/0"]
    kept = _proven(usable, proof, config, config.train)
    assert [row.ground_truth for row in kept.rows] == ["a+b", "a+b", "(\\sqrt{2},3)"]
    with pytest.raises(InputError, match=r"rows.jsonl, row 4: ground truth: it does not equal itself \("):
        _proven(usable, proof, config.model_copy(update={"bad_truth": "refuse"}), config.train)


def test_computing_is_bounded(
    tmp_path: Path, verifiers: Verifiers, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Counting(Verifiers):
        def prove_truth(self, ability: str, ground_truth: str) -> "Future[str | None]":
            asked.append(ground_truth)
            done: Future[str | None] = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr(truths, "MAX_COMPUTED", 2)
    config = data(tmp_path, [("math", f"a+{letter}") for letter in "bcdfg"], "skip")
    rows = _usable_rows(config.train, config, verifiers).rows
    rows[0] = replace(rows[0], other_truths=("a+h",))
    proof = truths.prove_truths(rows, Counting(verifiers.by_ability))
    assert asked == ["a+b", "a+h"]
    assert proof.remark is not None
    assert "; 4 distinct ones after them are not (at most 2, or 60 s)" in proof.remark
