"""Evaluation from the command line and in training on a toy model: the same prompts, the same draws, the same figures.

The toy answers with noise, so a pattern takes a digit for its answer: one in ten is right.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli.main import main
from tests.support import toy
from tests.support.ranks import run_ranks
from tests.support.runs import read_lines, train_rank

SUITE = """\
seed: 5
block: 6
defaults:
  file: sums.jsonl
  question: q
  answer: a
  id: name
  answer_pattern: "([0-9])"
  max_tokens: 12
sets:
  greedy:
    limit: 9
  drawn:
    n: 4
    temperature: 1.0
    top_p: 0.95
    stop: ["7"]
    every: 2
  cut:
    n: 2
    temperature: 0.7
    max_tokens: 90
    prompt: "{question} and 1 and 2 and 3 and 4 and 5 and 6 and 7 and 8 and 9"
"""
NAMES = ("accuracy", "accuracy_low", "accuracy_high", "score", "truncated", "no_answer", "response_tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a suite and its questions; one of them fills the model's context alone."""
    folder = tmp_path_factory.mktemp("evaluate")
    toy.make_model(folder / "model", hidden=32, layers=2)
    rows = [{"name": f"sum-{n}", "q": f"{n % 10}+{n % 7}?", "a": (n % 10 + n % 7) % 10} for n in range(14)]
    rows[3]["q"] = "3+3?" + " 1" * 54
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "suite.yaml").write_text(SUITE)
    return folder


def evaluate(folder: Path, output: str, *options: str, model: str | None = None, suite: str = "suite.yaml") -> int:
    words = ["evaluate", model or str(folder / "model"), str(folder / suite), "--output", str(folder / output)]
    return main([*words, "--workers", "1", *options])


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> Path:
    assert evaluate(folder, "first") == 0
    return folder / "first"


def settings(folder: Path, output: str, **sections: dict[str, Any]) -> dict[str, Any]:
    prompts = toy.make_prompts(folder / "prompts.jsonl", 8)
    base = toy.settings(str(folder / "model"), prompts, folder / output, **sections)
    return toy.merge(base, {"run": {"steps": 1}, "eval": {"suite": str(folder / "suite.yaml")}})


def assert_figures(metrics: dict[str, Any], output: Path) -> None:
    """A line of metrics.jsonl says what an evaluation's results.json says, to the last digit."""
    results = json.loads((output / "results.json").read_text())
    for name, own in results["sets"].items():
        accuracy = own["accuracy"]
        expected = {**own, "accuracy": accuracy["value"], "accuracy_low": accuracy["low"]}
        expected["accuracy_high"] = accuracy["high"]
        found = {key: metrics[f"eval/{name}/{key}"] for key in NAMES}
        assert found == {key: expected[key] for key in NAMES}, name
        for figure in ("pass", "majority"):
            told = {k: metrics[f"eval/{name}/{figure}@{k}"] for k in own[f"{figure}_at"]}
            assert told == own[f"{figure}_at"], (name, figure)
    macro = results["macro_accuracy"]
    assert metrics["eval/macro/accuracy"] == macro["value"]
    assert metrics["eval/macro/accuracy_low"] == macro["low"]


def test_what_an_evaluation_writes(evaluated: Path) -> None:
    results = json.loads((evaluated / "results.json").read_text())
    contract = json.loads((evaluated / "contract.json").read_text())
    assert {name: own["num_questions"] for name, own in results["sets"].items()} == {
        "greedy": 9,
        "drawn": 14,
        "cut": 14,
    }
    rows = [json.loads(line) for line in (evaluated / "samples" / "drawn.jsonl").read_text().splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [(f"sum-{n}", k) for n in range(14) for k in range(4)]
    right = sum(row["verdict"] == "correct" for row in rows) / len(rows)
    assert results["sets"]["drawn"]["accuracy"]["value"] == pytest.approx(right)
    assert 0 < right < 1
    assert not any("7" in row["response"] for row in rows)
    assert results["sets"]["drawn"]["response_tokens"] == pytest.approx(
        sum(len(row["response_ids"]) for row in rows) / len(rows)
    )
    # The model holds 128 tokens; question 3 alone fills them with the longer wording, and is answered by nothing.
    cut = [json.loads(line) for line in (evaluated / "samples" / "cut.jsonl").read_text().splitlines()]
    empty = [row for row in cut if row["id"] == "sum-3"]
    assert all(row["response"] == "" and row["truncated"] and row["verdict"] == "no_answer" for row in empty)
    assert all(len(row["prompt_ids"]) + len(row["response_ids"]) <= 128 for row in cut if row["id"] != "sum-3")
    assert contract["sets"]["cut"] | {"context": 128, "num_capped": 14, "num_too_long": 1} == contract["sets"]["cut"]
    assert contract["sets"]["greedy"]["num_capped"] == 0
    assert contract["model"]["files"].keys() >= {"weights", "config.json", "tokenizer.json"}
    assert not (evaluated / "unfinished").exists()


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_finds_the_same_figures_at_step_0(folder: Path, evaluated: Path, world_size: int) -> None:
    config = settings(folder, f"run{world_size}")
    assert run_ranks(train_rank, world_size, json.dumps(config), timeout_s=240.0) == [0] * world_size
    metrics = read_lines(config, "metrics.jsonl")
    assert_figures(metrics[0], evaluated)
    ours, theirs = (
        json.loads(path.read_text())
        for path in (evaluated / "contract.json", folder / f"run{world_size}" / "evaluation-contract.json")
    )
    assert (ours["sets"], ours["suite"]) == (theirs["sets"], theirs["suite"])
    held_out = [row for row in read_lines(config, "samples.jsonl") if row["kind"].startswith("held_out")]
    assert {row["step"] for row in held_out} == {0, 1}


def test_a_checkpoint_is_evaluated_as_training_saw_it(folder: Path) -> None:
    quick = {"policy": {"optimizer": {"lr": 0.03}}, "prm": {"optimizer": {"lr": 0.03}}}
    # A PRM that learns before it scores has something to say in the first step.
    config = settings(folder, "saved", checkpoint={"save_final": True}, models=quick, prm={"update": "before"})
    assert run_ranks(train_rank, 1, json.dumps(config), timeout_s=240.0) == [0]
    checkpoint = folder / "saved" / "checkpoints" / "step-00000001"
    assert evaluate(folder, "of_checkpoint", model=str(checkpoint)) == 0
    metrics = read_lines(config, "metrics.jsonl")
    assert_figures(metrics[1], folder / "of_checkpoint")
    before = {key: value for key, value in metrics[0].items() if key.startswith("eval/")}
    assert any(metrics[1][key] != value for key, value in before.items()), "a step changes what the model answers"
    assert not list(folder.glob(".of_checkpoint*"))


def test_a_killed_evaluation_goes_on_to_the_same_bytes(folder: Path, evaluated: Path) -> None:
    words = ["evaluate", str(folder / "model"), str(folder / "suite.yaml"), "--output", str(folder / "killed")]
    command = [sys.executable, "-m", "prime_megatron", *words, "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    kept = folder / "killed" / "unfinished" / "drawn"
    deadline_s = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline_s and not (kept / "block-000001.jsonl").exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
    assert 2 <= len(list(kept.glob("block-*.jsonl"))) < 14
    assert main([*words, "--workers", "1"]) == 0
    for name in ("results.json", "contract.json", "questions.json", "samples/drawn.jsonl", "samples/cut.jsonl"):
        assert (folder / "killed" / name).read_bytes() == (evaluated / name).read_bytes(), name


def test_given_responses_are_graded_again_alike(folder: Path, evaluated: Path) -> None:
    assert evaluate(folder, "again", model=str(evaluated / "samples")) == 0
    for name in ("greedy", "drawn", "cut"):
        first, again = (
            json.loads((at / "results.json").read_text())["sets"][name] for at in (evaluated, folder / "again")
        )
        assert first["accuracy"] == again["accuracy"]
        assert first["majority_at"] == again["majority_at"]


def test_two_evaluations_compared(folder: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy.make_model(folder / "other", hidden=32, layers=2, seed=1)
    assert evaluate(folder, "second", model=str(folder / "other")) == 0
    assert evaluate(folder, "solved", "--sets", "drawn", "--n", "4", model="canonical") == 0
    capsys.readouterr()
    assert main(["compare", str(evaluated), str(folder / "second")]) == 0
    table = capsys.readouterr().out
    rows = re.findall(r"([+-][0-9.]+) to ([+-][0-9.]+) +│ (no difference shown|different)", table)
    assert len(rows) == 4
    for low, high, said in rows:
        assert (said == "different") == (float(low) > 0 or float(high) < 0), rows
    assert main(["compare", str(evaluated), str(folder / "solved")]) == 0
    table = capsys.readouterr().out
    assert "different" in table
    assert "no difference shown" not in table
    assert main(["compare", str(evaluated), str(folder)]) == 2


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0, said
    return said


def test_bad_input_is_one_line(folder: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert "no set 'gsm'" in refused(capsys, evaluate(folder, "x", "--sets", "gsm"))
    assert "holds a finished evaluation" in refused(capsys, evaluate(folder, "first"))
    assert "is not empty" in refused(capsys, evaluate(folder, "model"))
    assert "the model holds 128 tokens" in refused(capsys, evaluate(folder, "x", "--max-tokens", "128"))
    assert "no such model folder" in refused(capsys, evaluate(folder, "x", model=str(folder / "none")))
    assert "neither an HF model folder" in refused(capsys, evaluate(folder, "x", model=str(folder)))
    for keys, said in (("rows: 15", "14 rows, the suite knows 15"), (f"sha256: {'f' * 64}", "another file")):
        (folder / "wrong.yaml").write_text(SUITE.replace("question: q", f"question: q\n  {keys}"))
        assert said in refused(capsys, evaluate(folder, "x", suite="wrong.yaml"))
    toy.make_model(folder / "bare", hidden=32, layers=2)
    (folder / "bare" / "chat_template.jinja").unlink()
    assert "chat template" in refused(capsys, evaluate(folder, "x", model=str(folder / "bare")))
    assert not (folder / "x").exists()
    config = settings(folder, "y", eval={"suite_data": str(folder / "none")})
    (folder / "y.yaml").write_text(json.dumps(config))
    assert "sums.jsonl: no such file" in refused(capsys, main(["train", str(folder / "y.yaml")]))
    assert not (folder / "y").exists()


def test_generate_answers_shards_that_join_to_the_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = toy.make_prompts(folder / "ask.jsonl", 7)

    def generate(output: str, *options: str) -> int:
        words = ["generate", str(folder / "model"), prompts, "--output", str(folder / output), "--n", "2"]
        return main([*words, "--max-tokens", "8", "--block", "4", "--grade", "--logprobs", "--workers", "1", *options])

    def rows(output: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / output).read_text().splitlines()]

    assert generate("all.jsonl") == 0
    whole = rows("all.jsonl")
    assert [(row["id"], row["sample"]) for row in whole] == [(str(n), k) for n in range(7) for k in range(2)]
    assert all(len(row["logprobs"]) == len(row["response_ids"]) <= 8 for row in whole)
    assert all(row["outcome"] in (0.0, 1.0) and row["reason"] for row in whole)
    texts = {(row["id"], row["sample"]): row["response"] for row in whole}
    for index in range(3):
        assert generate(f"part{index}.jsonl", "--shard", f"{index}/3") == 0
        part = rows(f"part{index}.jsonl")
        assert {row["id"] for row in part} == {str(n) for n in range(index, 7, 3)}
        assert all(texts[row["id"], row["sample"]] == row["response"] for row in part)
    capsys.readouterr()
    assert "exists" in refused(capsys, generate("all.jsonl"))
    assert "not of the form I/N" in refused(capsys, generate("z.jsonl", "--shard", "3"))
    assert "all samples would be one" in refused(capsys, generate("z.jsonl", "--temperature", "0"))
    assert "the model holds 128" in refused(capsys, generate("z.jsonl", "--max-tokens", "128"))
