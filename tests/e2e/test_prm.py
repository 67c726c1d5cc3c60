"""The PRM as a product: trained alone, resumed, scored with in every layout, used by its card and by training."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prime_megatron.errors import ExitCode
from tests.support.prm_runs import make_labelled, prm_config
from tests.support.ranks import run_ranks
from tests.support.resume_runs import at, no_fault
from tests.support.runs import TIMINGS
from tests.support.toy import make_prompts, merge, settings

STEP = 'step_delimiter="\\n"'
"""The toy's tokenizer has a token a character."""


def prm_rank(text: str, resume: str | None, fault: Callable[[], None]) -> int:
    from prime_megatron.config import PrmConfig
    from prime_megatron.prm import train_prm_alone

    fault()
    return int(train_prm_alone(PrmConfig.model_validate_json(text), resume=resume, overwrite=False))


def train(config: dict[str, Any], world: int = 1, resume: str | None = None, fault: Any = no_fault) -> set[int]:
    return set(run_ranks(prm_rank, world, json.dumps(config), resume, fault, timeout_s=200))


def outcome(output: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """(metrics without timings, the exported tensors)."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in row.items() if not key.startswith(TIMINGS)} for row in rows]
    return metrics, load_file(output / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(folder, config) of four steps on one process."""
    folder = tmp_path_factory.mktemp("prm")
    config = prm_config(folder, eval_every=2)
    assert train(config) == {0}
    return folder, config


def verbs(commands: list[list[str]]) -> tuple[str, str]:
    """Each verb in turn in one process, without a launcher; what they print."""
    from prime_megatron.cli.main import main

    torch.distributed.destroy_process_group()
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        for command in commands:
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                os.environ.pop(name, None)
            print(f"-> {main(command)}")
    return out.getvalue(), error.getvalue()


def verb_rank(command: list[str]) -> int:
    from prime_megatron.cli.main import main

    with contextlib.redirect_stdout(io.StringIO()):
        return int(main(command))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def scored(trained: tuple[Path, dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The held-out rows as `score --check` of one process gives them back, and what the verbs printed."""
    folder, _ = trained
    output = str(folder / "scored.jsonl")
    words = ["score", str(folder / "straight" / "model"), str(folder / "held_out.jsonl"), "--output", output]
    words += ["--check", "99", "dtype=float32", STEP]
    ((out, _),) = run_ranks(verbs, 1, [words])
    return lines(Path(output)), out


def test_it_learns_and_tells_so(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    metrics, tensors = outcome(folder / "straight")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in metrics if "eval/prm_pair_accuracy" in row] == [0, 2, 4]
    assert metrics[0]["eval/prm_accuracy"] == 0.5  # a PRM that is its own reference
    assert metrics[1]["prm/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics[4]["prm/loss"] < metrics[1]["prm/loss"] and metrics[1]["prm/grad_norm"] > 0
    before = load_file(folder / "model" / "model.safetensors")
    assert any(not tensor.equal(before[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("step", [2])
def test_resume_changes_no_bit(trained: tuple[Path, dict[str, Any]], step: int, tmp_path: Path) -> None:
    folder, config = trained
    name = f"checkpoints/step-{step:08d}"
    shutil.copytree(folder / "straight" / name, tmp_path / "out" / name)
    shutil.copy(folder / "straight" / "metrics.jsonl", tmp_path / "out" / "metrics.jsonl")
    assert train(at(config, tmp_path / "out"), resume="auto") == {0}
    one, two = outcome(tmp_path / "out"), outcome(folder / "straight")
    assert one[0] == two[0]
    assert all(tensor.equal(two[1][key]) for key, tensor in one[1].items())


def stop_in_second_step() -> None:
    from prime_megatron.prm import PrmStage

    step, calls = PrmStage.next_step, []

    def stopped(self: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self)

    PrmStage.next_step = stopped  # type: ignore[method-assign]


def test_a_signal_saves_and_any_layout_goes_on(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Stopped on one process, finished with tensor and pipeline parallelism: the same PRM to rounding."""
    folder, base = trained
    config = at(base, tmp_path / "out", checkpoint={"every": 0})
    assert train(config, fault=stop_in_second_step) == {ExitCode.REQUEUE}
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000002"]
    shutil.copytree(tmp_path / "out", tmp_path / "other")
    for name, parallel in (("out", {"tensor": 2}), ("other", {"pipeline": 2})):
        again = at(config, tmp_path / name, parallel=parallel)
        assert train(again, world=2, resume="auto") == {0}
        one, two = outcome(tmp_path / name), outcome(folder / "straight")
        for row, wanted in zip(one[0], two[0], strict=True):
            assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5), name
        assert all(torch.allclose(tensor, two[1][key], atol=2e-5) for key, tensor in one[1].items()), name


def losses(configs: str, words: list[str]) -> tuple[str, str]:
    """A run after the other, then a verb on one of them."""
    torch.distributed.destroy_process_group()
    del os.environ["RANK"]
    for config in json.loads(configs):
        assert prm_rank(json.dumps(config), None, no_fault) == 0
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    return verbs([words])


LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "bon_acc": {},
    "prefix_value": {"beta": 10.0, "adaptive_boundary": True, "difficulty_weights": True},
}


@pytest.fixture(scope="module")
def by_loss(trained: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Metrics of two steps of each loss; "rows": what `score` says of the held-out rows by the last one's PRM."""
    (folder, base), at_loss = trained, tmp_path_factory.mktemp("losses")
    runs = [
        at(base, at_loss / loss, prm={"loss": loss, **keys}, run={"steps": 2}, eval_every=0)
        for loss, keys in LOSSES.items()
    ]
    output = at_loss / "scored.jsonl"
    words = ["score", str(at_loss / "prefix_value" / "model"), str(folder / "held_out.jsonl"), "--output", str(output)]
    run_ranks(losses, 1, json.dumps(runs), [*words, "dtype=float32", STEP])
    return {loss: outcome(at_loss / loss)[0] for loss in LOSSES} | {"rows": lines(output)}


def test_losses_of_siblings_learn_pairs(by_loss: dict[str, Any]) -> None:
    dpo, bon = by_loss["dpo"], by_loss["bon_acc"]
    assert dpo[1]["prm/loss"] == pytest.approx(np.log(2), abs=1e-6)  # every margin is 0 at the start
    assert bon[1]["prm/loss"] != pytest.approx(np.log(2), abs=1e-2)
    assert dpo[2]["prm/loss"] != bon[2]["prm/loss"]


def test_a_prm_of_prefix_values_scores_by_their_mean(by_loss: dict[str, Any]) -> None:
    """Training, the held-out figures and `score` mean the same number by a response's logit."""
    told, rows = by_loss["prefix_value"], by_loss["rows"]
    assert told[1]["prm/grad_norm"] > 0 and told[1]["prm/loss"] > np.log(2)  # every value starts short of its margin
    logit, right = (np.array([row[key] for row in rows]) for key in ("prm_score", "outcome"))
    assert logit == pytest.approx([np.mean(row["process_rewards"]) for row in rows], abs=1e-5)
    assert told[-1]["eval/prm_ce"] == pytest.approx(np.mean(np.log1p(np.exp(logit)) - right * logit), abs=1e-5)


def test_scores_are_those_of_transformers(scored: tuple[list[dict[str, Any]], str]) -> None:
    rows, out = scored
    (largest,) = re.findall(r"differs by at most (\S+)", out)
    assert float(largest) < 1e-5 and out.endswith("-> 0\n")
    assert max(abs(reward) for row in rows for reward in row["process_rewards"]) > 0.01
    for row in rows:
        assert len(row["process_rewards"]) == len(row["response_ids"])
        assert sum(row["process_rewards"]) == pytest.approx(row["prm_score"], abs=1e-5)
        bounds = [-1, *row["step_ends"]]
        sums = [sum(row["process_rewards"][a + 1 : b + 1]) for a, b in itertools.pairwise(bounds)]
        assert row["step_rewards"] == pytest.approx(sums, abs=1e-5) and len(sums) == 5


@pytest.mark.parametrize("layout", ["tensor", "pipeline"])
def test_scores_are_the_same_in_every_layout(
    trained: tuple[Path, dict[str, Any]], scored: tuple[list[dict[str, Any]], str], layout: str, tmp_path: Path
) -> None:
    folder, _ = trained
    output = tmp_path / "out.jsonl"
    words = ["score", str(folder / "straight" / "model"), str(folder / "held_out.jsonl"), "--output", str(output)]
    words += ["dtype=float32", STEP, f"parallel.{layout}=2", "processes=2", "batch_size=7"]
    assert run_ranks(verb_rank, 2, words) == [0, 0]
    for row, wanted in zip(lines(output), scored[0], strict=True):
        assert row["process_rewards"] == pytest.approx(wanted["process_rewards"], abs=1e-5)
        assert {key: row[key] for key in ("id", "sample", "step_ends")} == {
            key: wanted[key] for key in ("id", "sample", "step_ends")
        }


def test_held_out_figures_are_those_of_the_scores(
    trained: tuple[Path, dict[str, Any]], scored: tuple[list[dict[str, Any]], str]
) -> None:
    """Accuracy and pair accuracy by hand, from the scores of the exported PRM."""
    folder, _ = trained
    rows, out = scored
    told = outcome(folder / "straight")[0][-1]
    logit, right = np.array([row["prm_score"] for row in rows]), np.array([row["outcome"] for row in rows])
    assert told["eval/prm_accuracy"] == pytest.approx(np.mean((logit > 0) == (right > 0.5)))
    assert told["eval/prm_ce"] == pytest.approx(np.mean(np.log1p(np.exp(logit)) - right * logit), abs=1e-5)
    pairs: dict[str, list[bool]] = {}
    for i, one in enumerate(rows):
        for j, two in enumerate(rows):
            if one["prompt"] == two["prompt"] and right[i] > right[j]:
                pairs.setdefault(one["prompt"][0]["content"], []).append(bool(logit[i] > logit[j]))
    by_hand = np.mean([np.mean(agreed) for agreed in pairs.values()])
    assert told["eval/prm_pair_accuracy"] == pytest.approx(by_hand)
    assert f"prm/pair_accuracy {by_hand:.4f}" in out


def test_the_usage_on_the_card_scores_alike(
    trained: tuple[Path, dict[str, Any]], scored: tuple[list[dict[str, Any]], str], tmp_path: Path
) -> None:
    folder, _ = trained
    model = folder / "straight" / "model"
    (usage,) = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(), re.DOTALL)
    assert len(usage.splitlines()) < 30
    (tmp_path / "usage.py").write_text(usage)
    row = scored[0][1]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "usage.py"), str(model), row["prompt"][0]["content"], row["response"]],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["process_rewards"] == pytest.approx(row["process_rewards"], abs=1e-5)
    assert told["probability"] == pytest.approx(1 / (1 + np.exp(-row["prm_score"])), abs=1e-5)


def train_rank(text: str) -> int:
    from prime_megatron.config import TrainConfig
    from prime_megatron.trainer import train as train_policy

    return int(train_policy(TrainConfig.model_validate_json(text), resume=None, overwrite=False))


def test_training_takes_it_and_measures_it(
    trained: tuple[Path, dict[str, Any]], scored: tuple[list[dict[str, Any]], str], tmp_path: Path
) -> None:
    """As models.prm.path with its reference: a frozen PRM keeps its held-out figures, and the cards name all."""
    folder, _ = trained
    prm, base = folder / "straight" / "model", str(folder / "model")
    config = settings(base, make_prompts(tmp_path / "prompts.jsonl"), tmp_path / "out", run={"steps": 3})
    mine = {
        "models": {"prm": {"path": str(prm)}, "reference": base},
        "prm": {"beta": 0.5, "update": "none"},
        "eval": {"prm_rows": [str(folder / "held_out.jsonl")], "prm_every": 2},
        "checkpoint": {"export_final": True},
    }
    assert run_ranks(train_rank, 1, json.dumps(merge(config, mine))) == [0]
    rows = {row["step"]: row for row in lines(tmp_path / "out" / "metrics.jsonl")}
    alone = outcome(folder / "straight")[0][-1]
    for step, row in rows.items():
        held_out = {key: value for key, value in row.items() if key.startswith("eval/prm_")}
        assert held_out == ({key: pytest.approx(alone[key], abs=1e-6) for key in held_out} if step in (2, 3) else {})
    assert len({key for key in rows[3] if key.startswith("eval/prm_")}) == 3
    note = json.loads((tmp_path / "out" / "prm" / "prm.json").read_text())
    assert note["reference"] == str(Path(base).resolve()) and note["beta"] == 0.5
    card = (tmp_path / "out" / "prm" / "README.md").read_text()
    assert f"| eval/prm_pair_accuracy | {alone['eval/prm_pair_accuracy']:.4g} |" in card
    policy = tmp_path / "out" / "policy"
    assert not (policy / "prm.json").exists() and "lm_eval" in (policy / "README.md").read_text()


def test_first_wrong_steps_by_prm_and_by_judge(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Both verbs end to end; the judge's signs against transformers' own logits."""
    from transformers import AutoModelForCausalLM

    from prime_megatron.data.tokenizer import load_tokenizer
    from prime_megatron.evaluate.process_bench import read_solutions
    from prime_megatron.evaluate.step_judge import ask, first_wrong, sign_ids

    folder, _ = trained
    model = str(folder / "straight" / "model")
    rows = [
        {"id": str(i), "problem": f"{i}+1?", "steps": [f"{i}+1", f"is {i + 1}", "so"][: 1 + i % 3], "label": i % 2 - 1}
        for i in range(30)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = [tmp_path / "prm.jsonl", tmp_path / "judge.jsonl"]
    common = [str(data), "dtype=float32", "batch_size=8", "--tune-share", "0.5"]
    commands = [
        ["process-bench", *common, "--prm", model, "--output", str(outputs[0])],
        ["process-bench", *common, "--judge", str(folder / "model"), "--output", str(outputs[1])],
    ]
    # The judge's question has capitals and punctuation, which the toy's tokenizer reads as unknown.
    ((out, error),) = run_ranks(verbs, 1, commands)
    assert out.count("-> 0") == 2 and "mean F1 of 1 files" in out and "threshold" in out, error
    assert {row["predicted"] for row in lines(outputs[0])} <= {-1, 0, 1, 2}
    assert [len(row["step_scores"]) for row in lines(outputs[0])] == [len(row["steps"]) for row in rows]
    tokenizer = load_tokenizer(str(folder / "model"))
    plus, minus = sign_ids(tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    for told, solution in list(zip(lines(outputs[1]), read_solutions(str(data)), strict=True))[:6]:
        asked = ask(solution, tokenizer, plus)
        with torch.no_grad():
            logits = plain(torch.tensor([[*asked.prompt_ids, *asked.response_ids]])).logits[0].log_softmax(-1)
        at_signs = [len(asked.prompt_ids) + place - 1 for place in asked.sign_at]
        wanted = [[float(logits[place, sign]) for place in at_signs] for sign in (plus, minus)]
        assert told["plus_logprobs"] == pytest.approx(wanted[0], abs=1e-5)
        assert told["minus_logprobs"] == pytest.approx(wanted[1], abs=1e-5)
        assert told["predicted"] == first_wrong(*wanted)


def test_bad_input_is_one_line(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, config = trained
    model, rows, base = str(folder / "straight" / "model"), str(folder / "held_out.jsonl"), str(folder / "model")
    there = tmp_path / "there.jsonl"
    there.write_text("")
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    one_kind = tmp_path / "right.jsonl"
    one_kind.write_text(json.dumps({"prompt": "a", "response": "b", "outcome": 1}) + "\n")
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text(json.dumps({"prompt": "a", "response": "b", "prompt_ids": [2], "response_ids": [65]}) + "\n")
    moved = shutil.copytree(model, tmp_path / "moved")
    note = json.loads((moved / "prm.json").read_text())
    (moved / "prm.json").write_text(json.dumps(note | {"reference": str(tmp_path / "gone")}))
    changed = shutil.copytree(model, tmp_path / "changed")
    (changed / "prm.json").write_text(json.dumps(note | {"reference": model}))
    out = str(tmp_path / "new.jsonl")
    keys = ["dtype=float32", STEP]
    yaml_path = tmp_path / "prm.yaml"
    yaml_path.write_text(json.dumps(at(config, tmp_path / "never")))
    cases = {
        "exists; give --overwrite": ["score", model, rows, "--output", str(there), *keys],
        "no such data file": ["score", model, "nowhere.jsonl", "--output", out, *keys],
        "has no prm.json": ["score", base, rows, "--output", out, *keys],
        "gone is not there; name it with": ["score", str(moved), rows, "--output", out, *keys],
        "is not what it was (weights)": ["score", str(changed), rows, "--output", out, *keys],
        "a token id is not in the model's vocabulary of 65": ["score", model, str(foreign), "--output", out, *keys],
        "more than 8 together (max_tokens)": ["score", model, rows, "--output", out, *keys, "max_tokens=8"],
        "unknown key beeta": ["score", model, rows, "--output", out, "beeta=1"],
        "does not divide the 1 processes": ["score", model, rows, "--output", out, "parallel.tensor=2"],
        "outcome is missing": ["prm", str(yaml_path), f"data.train=[{unlabelled}]"],
        "all outcomes are 1.0": ["prm", str(yaml_path), f"data.train=[{one_kind}]"],
        "compares siblings": ["prm", str(yaml_path), "prm.loss=dpo", "data.group_size=1"],
        "nothing to measure on": ["prm", str(yaml_path), "data.held_out=[]", "eval_every=1"],
        "F1 needs both kinds": ["process-bench", write_solution(tmp_path), "--prm", model, *keys],
    }
    ((_, error),) = run_ranks(verbs, 1, list(cases.values()))
    told = [line for line in error.splitlines() if line.startswith("error")]
    assert len(told) == len(cases), error
    for words, line in zip(cases, told, strict=True):
        assert words in line
    assert not Path(out).exists() and not (tmp_path / "never").exists()


def write_solution(folder: Path) -> str:
    path = folder / "solution.jsonl"
    path.write_text(json.dumps({"problem": "p", "steps": ["a"], "label": -1}) + "\n")
    return str(path)


def test_labelled_rows_without_ids_are_those_with_them(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Ids that a scored file carries are the ones that tokenizer and template make."""
    folder, _ = trained
    from prime_megatron.data.tokenizer import load_tokenizer
    from prime_megatron.evaluate.responses import Encoder, read_responses

    encoder = Encoder(load_tokenizer(str(folder / "model")), 65, 64, None)
    (bare, *_) = read_responses(make_labelled(tmp_path / "rows.jsonl", prompts=1), labelled=True)
    encoded = encoder.encode(bare)
    assert encoded is not None
    path = tmp_path / "with.jsonl"
    ids = {"prompt_ids": list(encoded.prompt_ids), "response_ids": list(encoded.response_ids)}
    path.write_text(json.dumps({**bare.row, **ids, "response": "not read"}) + "\n")
    (given,) = read_responses(str(path), labelled=True)
    assert encoder.encode(given) == encoded
