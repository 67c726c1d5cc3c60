"""Before the first update: an engine that computes another model than the trainer ends the run, rounding does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import models, toy
from tests.support.ranks import run_ranks
from tests.support.runs import alarmed_rank, misread_rank, read_lines, train_rank


def _settings(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    models.make_model(tmp_path / "model", "qwen2", vocab_size=101)
    toy.make_tokenizer().save_pretrained(tmp_path / "model")
    settings = toy.settings(str(tmp_path / "model"), toy.make_prompts(tmp_path / "prompts.jsonl"), tmp_path / "out")
    return toy.merge(settings, {"run": {"steps": 1}, "rollout": {"samples_per_prompt": 2}} | sections)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_the_trainer_reads_otherwise_takes_no_step(tmp_path: Path, dtype: str) -> None:
    settings = _settings(tmp_path, models={"dtype": dtype})
    (said,) = run_ranks(misread_rank, 1, json.dumps(settings), timeout_s=200)
    assert "engine and trainer log-probs differ by" in said and "before the first update" in said
    assert "\n" not in said
    assert [row["step"] for row in read_lines(settings, "metrics.jsonl")] == [0]


def test_rounding_passes_over_tensor_parallel_ranks(tmp_path: Path) -> None:
    settings = _settings(tmp_path, models={"dtype": "bfloat16"}, parallel={"tensor": 2, "sequence": True})
    assert set(run_ranks(train_rank, 2, json.dumps(settings), timeout_s=200)) == {0}
    assert [row["step"] for row in read_lines(settings, "metrics.jsonl")] == [0, 1]


def test_every_step_is_held_against_what_the_first_one_measured(tmp_path: Path) -> None:
    """Rounding passes and no step of a sound engine is warned of; one wrong weight is."""
    settings = _settings(tmp_path, models={"dtype": "bfloat16"}, run={"steps": 3}, rollout={"check_every": 0})
    (told,) = run_ranks(alarmed_rank, 1, json.dumps(settings), timeout_s=200)
    assert told[:2] == ["", ""] and "log-probs differ by" in told[2] and "and rounding explains" in told[2]
    assert [row["step"] for row in read_lines(settings, "metrics.jsonl")] == [0, 1, 2, 3]


def test_the_alarm_sets_the_limit(tmp_path: Path) -> None:
    """A limit below rounding ends a sound run; the nucleus of a sound run is no difference of models."""
    settings = _settings(tmp_path, models={"dtype": "bfloat16"}, rollout={"logprob_alarm": 1e-9})
    with pytest.raises(RuntimeError, match=r"rollout.logprob_alarm explains 1.0e-09: they do not compute the same"):
        run_ranks(train_rank, 1, json.dumps(settings), timeout_s=200)
    nucleus = {"logprob_alarm": None, "sampling": {"max_response_tokens": 10, "top_p": 0.5}}
    settings = toy.merge(settings, {"models": {"dtype": "float32"}, "rollout": nucleus})
    settings["run"]["output_dir"] = str(tmp_path / "nucleus")
    assert run_ranks(train_rank, 1, json.dumps(settings), timeout_s=200) == [0]


def _estimate(folder: str, lengths: tuple[int, ...]) -> Any:
    """(logits, logits under other roundings) in bfloat16 on one rank, and whether the hooks are gone afterwards."""
    from prime_megatron.mcore.model import unwrap
    from prime_megatron.mcore.rounding import other_roundings

    topology, chunks = models.start({}, folder, dtype="bfloat16")
    packed = models.pack(models.sequences(lengths), topology, sequence_parallel=False)

    def logits() -> Any:
        def score(index: int, hidden: torch.Tensor, model: Any) -> Any:
            return hidden.sum(), hidden[:, 0].float() @ unwrap(model).head_weight().float().T

        with torch.no_grad():
            return torch.cat(models.run(chunks, [packed], score, train=False))

    before = logits()
    with other_roundings(chunks):
        moved = logits()
    return before, moved, torch.equal(before, logits())


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe"])
def test_other_roundings_move_log_probs_as_another_program_does(tmp_path: Path, name: str) -> None:
    """transformers' bfloat16 of the same model is as far away, within the check's margin."""
    model = models.make_model(tmp_path, name).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    lengths = (90, 40)
    before, moved, restored = run_ranks(_estimate, 1, str(tmp_path), lengths)[0]
    theirs = models.reference_logits(model, models.sequences(lengths)).float()
    own = (moved.log_softmax(-1) - before.log_softmax(-1)).abs().mean()
    gap = (theirs.log_softmax(-1) - before.log_softmax(-1)).abs().mean()
    assert restored
    assert gap / 3 < own < 3 * gap
