"""The example with programs: rows are what they say, right programs pass in the jail, the pupil slips as said."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from prime_megatron.config import CodeConfig
from prime_megatron.config.load import load_sft_config, load_train_config
from prime_megatron.data.rows import read_prompt_rows, read_sft_rows
from prime_megatron.data.tokenizer import load_tokenizer
from prime_megatron.verify import Answer
from prime_megatron.verify.code.check import refusal
from prime_megatron.verify.code.verifier import CodeVerifier, truth_problem

EXAMPLE = Path(__file__).parents[2] / "examples" / "code_cpu"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("code_cpu_make_task", EXAMPLE / "make_task.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def task(module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    module.make(folder, seed=0)
    return folder


def wanted(prompt: str, x: int) -> int:
    """What f(x) is, computed from the prompt's text alone."""
    first, name, *lines = prompt.strip().split("\n")
    assert (first, name) == ("Write f(x):", "x")
    for line in lines:
        word, digit = re.fullmatch(r"(add|subtract|cap at) ([1-9])", line).groups()
        x = min(x, int(digit)) if word == "cap at" else x + int(digit) * (1 if word == "add" else -1)
    return x


@pytest.mark.parametrize(("name", "count"), [("train.jsonl", 4096), ("eval.jsonl", 128)])
def test_rows_are_half_programs_and_say_what_is_right(task: Path, name: str, count: int) -> None:
    rows = read_prompt_rows([str(task / name)])
    assert [row.ability for row in rows] == ["code", "math"] * count
    for row in rows[::2]:
        truth = json.loads(row.ground_truth)
        assert truth_problem(row.ground_truth) is None
        assert truth["outputs"] == [wanted(row.messages[0].content, x) for (x,) in truth["inputs"]]
    assert len({row.messages[0].content for row in rows}) == len(rows)


def test_no_held_out_prompt_is_learnt_from(task: Path) -> None:
    held_out = {row.messages[0].content for row in read_prompt_rows([str(task / "eval.jsonl")])}
    learnt = {row.messages[0].content for row in read_prompt_rows([str(task / "train.jsonl")])}
    learnt |= {row.messages[0].content for row in read_sft_rows([str(task / "sft.jsonl")])}
    assert not held_out & learnt


def test_the_tokenizer_gives_programs_back_within_the_limits(task: Path) -> None:
    tokenizer = load_tokenizer(str(task / "model"))
    config = load_train_config(str(EXAMPLE / "prime.yaml"), [])
    for row in read_sft_rows([str(task / "sft.jsonl")])[:200]:
        text = row.messages[-1].content
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < config.rollout.sampling.max_response_tokens


def test_the_pupil_slips_where_it_says(module: ModuleType) -> None:
    rng = random.Random(1)
    hard, easy = module.Step("-", 8), module.Step("-", 6)
    slips = sum(module.slip(hard, rng) == "+" for _ in range(4000)) / 4000
    assert abs(slips - module.WRONG_SIGN) < 0.03
    assert {module.slip(module.Step(kind, 9), rng) for kind in ("+", "min") for _ in range(99)} == {"+", "min"}
    assert all(module.slip(easy, rng) == "-" for _ in range(99))


@pytest.mark.skipif(refusal(CodeConfig()) is not None, reason="this kernel cannot hold programs")
def test_right_programs_pass_and_slips_cost(module: ModuleType) -> None:
    rng = random.Random(2)
    functions = module.distinct_functions(rng)
    verifier = CodeVerifier(1, CodeConfig(timeout_s=20.0, sample_timeout_s=60.0))
    try:
        for _ in range(15):
            function = next(functions)
            right = verifier.submit(Answer("code", function.program(None), function.ground_truth)).result(timeout=60)
            assert (right.score, right.verdict) == (1.0, "correct")
            written = function.program(rng)
            verdict = verifier.submit(Answer("code", written, function.ground_truth)).result(timeout=60)
            if written == function.program(None):
                assert verdict.score == 1.0
            else:
                names: dict[str, object] = {}
                source = compile(written.removeprefix("```python\n").removesuffix("```"), "written", "exec")
                exec(source, names)  # noqa: S102 - the example's own program
                passed = [names["f"](x) == function.value(x) for x in function.inputs]  # type: ignore[operator]
                assert verdict.score == sum(passed) / len(passed)
    finally:
        verifier.close()


def test_the_configs_are_valid_and_follow_each_other() -> None:
    sft = load_sft_config(str(EXAMPLE / "sft.yaml"), [])
    train = load_train_config(str(EXAMPLE / "prime.yaml"), [])
    assert sft.model == "runs/code_cpu_task/model"
    assert train.models.policy.path == f"{sft.run.output_dir}/model"
    assert train.verify.code.jail == "landlock"
