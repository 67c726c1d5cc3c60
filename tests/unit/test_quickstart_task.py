"""The quick start's task: every row is what it says, and the tokenizer gives text back."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from prime_megatron.config.load import load_sft_config, load_train_config
from prime_megatron.data.rows import read_prompt_rows, read_sft_rows
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.verify.math import decide

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


def load_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart_make_task", QUICKSTART / "make_task.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    load_module().make(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(task: Path) -> Tokenizer:
    return load_tokenizer(str(task / "model"))


def fill_in(worksheet: str) -> list[int]:
    """The right results, start included, computed from the text alone."""
    _, start, *lines = worksheet.split("\n")
    results = [int(start)]
    for line in lines:
        sign, digit = re.fullmatch(r"([+-]) ([1-9]) = \?", line).groups()
        results.append(results[-1] + int(sign + digit))
    return results


@pytest.mark.parametrize(("name", "rows"), [("train.jsonl", 4096), ("eval.jsonl", 256)])
def test_prompts_and_ground_truth(task: Path, name: str, rows: int) -> None:
    found = read_prompt_rows([str(task / name)])
    assert len(found) == rows
    for row in found:
        results = fill_in(row.messages[-1].content)
        assert min(results) >= 0 and max(results) <= 19 and len(results) == 11
        assert (row.ability, row.ground_truth) == ("math", str(results[-1]))
        assert decide(f"so \\boxed{{{results[-1]}}}", row.ground_truth).score == 1.0  # without computer algebra
        assert decide(f"so \\boxed{{{results[-1] + 10}}}", row.ground_truth).score == 0.0


def test_no_worksheet_twice(task: Path) -> None:
    prompts = Counter(
        row.messages[0].content for name in ("train", "eval") for row in read_prompt_rows([str(task / f"{name}.jsonl")])
    )
    prompts.update(row.messages[0].content for row in read_sft_rows([str(task / "sft.jsonl")]))
    assert len(prompts) == 4096 + 256 + 8192 and max(prompts.values()) == 1


def test_worked_answers_slip_as_documented(task: Path) -> None:
    slips: Counter[tuple[str, bool]] = Counter()
    for row in read_sft_rows([str(task / "sft.jsonl")]):
        prompt, answer = (message.content for message in row.messages)
        start, *lines, box = answer.split("\n")
        assert [line.rpartition(" = ")[0] for line in lines] == [
            line.rpartition(" = ")[0] for line in prompt.split("\n")[2:]
        ]
        result = int(start)
        for line in lines:
            sign, digit, _, written = line.split(" ")
            right = result + int(sign + digit)
            off = int(written) - right
            crosses = right // 10 != result // 10
            assert off == 0 or (crosses and int(digit) >= 7 and off == (10 if sign == "-" else -10))
            if crosses and int(digit) >= 7:
                slips[sign, off != 0] += 1
            result = int(written)
            assert 0 <= result <= 99
        assert box == f"\\boxed{{{result}}}"
    for sign, rate in (("-", 0.57), ("+", 1 / 7)):
        assert slips[sign, True] / (slips[sign, True] + slips[sign, False]) == pytest.approx(rate, abs=0.02)


def test_the_same_seed_the_same_files(task: Path, tmp_path: Path) -> None:
    module = load_module()
    module.make(tmp_path / "same", seed=0)
    module.make(tmp_path / "other", seed=1)
    for name in ("train.jsonl", "eval.jsonl", "sft.jsonl", "model/model.safetensors", "model/tokenizer.json"):
        assert (tmp_path / "same" / name).read_bytes() == (task / name).read_bytes(), name
    assert (tmp_path / "other" / "eval.jsonl").read_bytes() != (task / "eval.jsonl").read_bytes()


def test_text_survives_the_tokenizer(task: Path, tokenizer: Tokenizer) -> None:
    for row in read_sft_rows([str(task / "sft.jsonl")])[:500]:
        prompt_ids, response_ids = tokenizer.encode_answer(row.messages)
        prompt, answer = (message.content for message in row.messages)
        whole = tokenizer.decode(prompt_ids + response_ids, skip_special_tokens=False)
        assert whole == f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        assert tokenizer.decode(response_ids) == answer
        assert len(prompt_ids) == 38 and len(response_ids) == 36
        assert response_ids[-1] == tokenizer.eos_token_ids[0] and tokenizer.eos_token_ids == (2,)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"), max_size=40))
def test_any_ascii_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_model_folder(task: Path, tokenizer: Tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(task / "model")
    assert type(model).__name__ == "Qwen2ForCausalLM" and model.config.vocab_size == 256
    assert max(tokenizer.hf.get_vocab().values()) < 256
    assert 0.08 < model.model.layers[0].mlp.up_proj.weight.std() < 0.12
    assert torch.isfinite(model(torch.tensor([tokenizer.encode("+ 7 = 12")])).logits).all()
    settings = json.loads((task / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    newline = tokenizer.step_end_table("\n", 256)
    assert newline[tokenizer.encode("\n")[0]]


def test_configs_fit_together() -> None:
    sft = load_sft_config(str(QUICKSTART / "sft.yaml"), [])
    prime = load_train_config(str(QUICKSTART / "prime.yaml"), [])
    assert prime.models.policy.path == f"{sft.run.output_dir}/model"
    assert sft.model == "runs/quickstart_task/model"
    assert sft.run.steps * sft.batch_size <= 8192
    assert prime.data.max_prompt_tokens >= 38 and prime.rollout.sampling.max_response_tokens >= 36
    assert prime.launch.processes_per_node == prime.parallel.pipeline == 2
