"""One token whose old log-prob is -100 in a real step: a finite loss, no skipped update, the gradient of the others."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.config import TrainConfig
from prime_megatron.types import Advantages, Scores
from tests.support.ranks import run_ranks
from tests.support.runs import judge, read_lines, run
from tests.support.toy import make_model, make_prompts, merge, settings

STRAY = -100.0


def one_step(run_settings: str, outcome: float, stray: bool) -> torch.Tensor:
    """A step of two mini-batches; returns the clipped gradient of the second one's update, flat.

    A response token of the second mini-batch, of a sequence with this outcome, has the old log-prob -100; or, not
    stray, it has its own and no advantage, so that the gradient is that of all the others.
    """
    from prime_megatron.run.assemble import open_parts
    from prime_megatron.trainer import PrimeTrainer

    gradients: list[torch.Tensor] = []

    class Trainer(PrimeTrainer):
        def token(self, batch: Any) -> int:
            micro = batch.policy[1].micro[0]
            at = micro.source_S[micro.response_mask_S]
            owner = batch.rollout.outcome_N[batch.rollout.sequence_T[at]]
            return int(at[owner == outcome][0])

        def score(self, batch: Any) -> Scores:
            scores = super().score(batch)
            if stray:
                scores.old_logprobs_T[self.token(batch)] = STRAY
            return scores

        def update_policy(self, batch: Any, scores: Scores, advantages: Advantages) -> Any:
            token = self.token(batch)
            sign = 1 if outcome == 1.0 else -1
            assert float(advantages.advantages_T[token]) * sign > 0
            if not stray:
                others_T = advantages.advantages_T.clone()
                others_T[token] = 0.0
                advantages = dataclasses.replace(advantages, advantages_T=others_T)
            optimizer = self.parts.roles.policy.optimizer.megatron
            apply = optimizer.step_with_ready_grads

            def noting() -> bool:
                found = [p.grad.flatten() for part in optimizer.chained_optimizers for p in part.get_parameters()]
                gradients.append(torch.cat(found).clone())
                return apply()

            optimizer.step_with_ready_grads = noting
            return super().update_policy(batch, scores, advantages)

    config = TrainConfig.model_validate_json(run_settings)
    with open_parts(config, resume=None, overwrite=False) as parts:
        assert Trainer(config, parts).run(resume=None) == 0
    assert len(gradients) == 2
    return gradients[1]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stray")
    model, prompts = make_model(folder / "model"), make_prompts(folder / "prompts.jsonl")
    base = settings(model, prompts, folder / "recorded", run={"steps": 1})
    run(merge(base, {"rollout": {"record": str(folder / "raw.jsonl")}}))
    replay = judge(folder / "raw.jsonl", folder / "judged.jsonl")
    over = {
        "rollout": {"engine": "replay", "replay": replay},
        # A tight clip, so that whatever the stray token adds to the norm would be taken from the others.
        "models": {"policy": {"num_mini_batches": 2, "optimizer": {"clip_grad": 0.01}}},
    }
    return merge(base, over)


@pytest.mark.parametrize("outcome", [0.0, 1.0], ids=["negative-advantage", "positive-advantage"])
def test_a_stray_token_leaves_the_step_to_the_others(outcome: float, recorded: Any, tmp_path: Path) -> None:
    found = {}
    for stray in (True, False):
        over = merge(recorded, {"run": {"output_dir": str(tmp_path / str(stray))}})
        (found[stray],) = run_ranks(one_step, 1, json.dumps(over), outcome, stray)
        row = read_lines(over, "metrics.jsonl")[1]
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), row
        assert row["policy/skipped_updates"] == 0
        assert (row["policy/beyond_clamp"] > 0) == stray
    others = found[False]
    assert others.norm() == pytest.approx(0.01, rel=1e-3)  # clipped
    assert (found[True] - others).norm() <= 0.01 * others.norm()
