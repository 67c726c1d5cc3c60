"""The starred quiz: rows are what they say, the reward reads the starred lines alone, the guesser guesses as said."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

from examples.starred.rewards import starred_lines
from prime_megatron.config.load import load_sft_config, load_train_config
from prime_megatron.data.rows import read_prompt_rows, read_sft_rows
from prime_megatron.data.tokenizer import load_tokenizer
from prime_megatron.families.read import read_config

EXAMPLE = Path(__file__).parents[2] / "examples" / "starred"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("starred_make_task", EXAMPLE / "make_task.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    assert (module.NUM_TRAIN, module.NUM_EVAL, module.NUM_SFT) == (8192, 256, 12000)
    module.NUM_TRAIN, module.NUM_SFT = 500, 2000
    return module


@pytest.fixture(scope="module")
def task(module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    module.make(folder, seed=0)
    return folder


def test_every_row_asks_16_squares_with_three_stars_of_one_board(task: Path) -> None:
    board: dict[str, set[str]] = defaultdict(set)
    for name, count in (("train.jsonl", 500), ("eval.jsonl", 256)):
        rows = read_prompt_rows([str(task / name)])
        assert len(rows) == count
        for row in rows:
            lines = row.ground_truth.split("\n")[1:]
            assert row.ability == "starred" and len(lines) == 16
            assert sum(line.startswith("* ") for line in lines) == 3
            assert row.messages[0].content.split("\n")[1:] == [line[:-1] + "?" for line in lines]
            assert len({line[2:4] for line in lines}) == 16
            for line in lines:
                board[line[2:4]].add(line[-1])
    assert len(board) == 64 and all(len(numbers) == 1 for numbers in board.values())


def test_the_guesser_has_one_wrong_number_a_square_and_his_skill(task: Path) -> None:
    rows = read_prompt_rows([str(task / "train.jsonl")])
    truth = {line[2:4]: line[-1] for row in rows for line in row.ground_truth.split("\n")[1:]}
    given: dict[str, list[str]] = defaultdict(list)
    for row in read_sft_rows([str(task / "sft.jsonl")]):
        for line in row.messages[1].content.split("\n")[1:]:
            given[line[2:4]].append(line[-1])
    for square, numbers in given.items():
        assert len(set(numbers)) == 2 and truth[square] in numbers
        assert 0.35 < numbers.count(truth[square]) / len(numbers) < 0.85
    assert sum(map(len, given.values())) == 2000 * 16


def test_the_reward_reads_the_starred_lines_and_the_form() -> None:
    truth = "\n- d7=4\n* a1=9\n- b2=0"
    assert starred_lines(truth, truth)
    assert starred_lines("\n- d7=5\n* a1=9\n- b2=1", truth), "lines without a star may be wrong"
    for wrong in (
        "\n- d7=4\n* a1=8\n- b2=0",  # a starred one
        "\n- d7=4\n* a1=9",  # a line less
        "\n- d7=4\n* a1=9\n- b2=0\n- c3=1",  # a line more
        "\n- d8=4\n* a1=9\n- b2=0",  # another square
        "\n* d7=4\n* a1=9\n- b2=0",  # another mark
        "\n- d7=4\n* a1=9\n- b2=",  # a line that is not filled in
        "\n- d7=4\n* a1=9\n- b2=x",
        "- d7=4\n* a1=9\n- b2=0",
        "",
    ):
        assert not starred_lines(wrong, truth), wrong


def test_three_tokens_a_line_and_two_models(task: Path) -> None:
    tokenizer = load_tokenizer(str(task / "model"))
    for row in read_sft_rows([str(task / "sft.jsonl")])[:100]:
        prompt_ids, response_ids = tokenizer.encode_answer(row.messages)
        assert tokenizer.decode(response_ids) == row.messages[1].content
        assert (len(prompt_ids), len(response_ids)) == (55, 49)
    assert [read_config(str(task / name)).layers for name in ("model", "small")] == [2, 1]


def test_the_same_seed_the_same_files(module: ModuleType, task: Path, tmp_path: Path) -> None:
    module.make(tmp_path / "same", seed=0)
    for name in ("train.jsonl", "eval.jsonl", "sft.jsonl", "model/model.safetensors", "small/model.safetensors"):
        assert (tmp_path / "same" / name).read_bytes() == (task / name).read_bytes(), name


def test_configs_fit_together() -> None:
    sft = load_sft_config(str(EXAMPLE / "sft.yaml"), [])
    prime = load_train_config(str(EXAMPLE / "prime.yaml"), [])
    assert prime.models.policy.path == f"{sft.run.output_dir}/model"
    assert sft.run.steps * sft.batch_size == 12000
    assert prime.data.max_prompt_tokens >= 55 and prime.rollout.sampling.max_response_tokens >= 49
    assert prime.preset == "local_credit" and prime.advantage.gamma_process == 0.0
