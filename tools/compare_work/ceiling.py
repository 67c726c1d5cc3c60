"""The ceiling: PRIME with the truth of every line for its PRM; `python -m tools.compare_work.ceiling train CONFIG`.

The trainer is the run's own but for one method: the step's PRM scores are made from the ground truth, so that the
process reward at a line's digit is beta * (right - siblings' mean of right), and 0 elsewhere. What follows is the
config's: estimator, weights, whitening. No verifier of a real task knows as much.
"""

from __future__ import annotations

import os
import socket
import sys

import numpy as np
import torch

from prime_megatron.config import TrainConfig
from prime_megatron.config.load import load_train_config
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.mcore.role import TrainResult
from prime_megatron.run.assemble import open_parts
from prime_megatron.run.parts import Parts
from prime_megatron.step.batch import StepBatch
from prime_megatron.trainer import PrimeTrainer
from prime_megatron.types import RolloutBatch, Scores
from tools.compare_work.truth import TOKENS_A_LINE, centred, right_lines


class TruthTrainer(PrimeTrainer):
    """PrimeTrainer with the truth in the PRM's place; arguments as there."""

    def __init__(self, config: TrainConfig, parts: Parts, tokenizer: Tokenizer) -> None:
        super().__init__(config, parts)
        self.tokenizer = tokenizer

    def update_prm(self, batch: StepBatch, scores: Scores, *, learns: bool) -> tuple[Scores, TrainResult | None]:
        """Scores whose log-ratio is the truth; nothing learns."""
        assert scores.ref_logprobs_T is not None
        truth_T = torch.from_numpy(true_rewards(batch.rollout, self.tokenizer)).to(scores.ref_logprobs_T)
        return scores.with_prm(scores.ref_logprobs_T + truth_T), None


def true_rewards(rollout: RolloutBatch, tokenizer: Tokenizer) -> np.ndarray:
    """Right (1 or 0) less the siblings' mean at that line, at each line's digit; 0 elsewhere: float [T]."""
    rewards_T = np.zeros(rollout.tokens_T.numel(), dtype=np.float32)
    ends = iter(rollout.cu_seqlens.tolist()[1:])
    for group in rollout.groups:
        truth_ids = tokenizer.encode(group.prompt.ground_truth)
        right_KL = np.array([right_lines(sample.token_ids, truth_ids) for sample in group.samples], dtype=float)
        for sample, credit_L in zip(group.samples, centred(right_KL), strict=True):
            end = next(ends)
            own_t = rewards_T[end - len(sample.token_ids) : end]
            digits = own_t[TOKENS_A_LINE - 1 :: TOKENS_A_LINE]
            count = min(len(digits), credit_L.size)
            digits[:count] = credit_L[:count]
    return rewards_T


def main(words: list[str]) -> int:
    """One process; the words of `prime-megatron train`; returns the exit code."""
    verb, path, *overrides = words
    assert verb == "train"
    overwrite = "--overwrite" in overrides
    config = load_train_config(path, [each for each in overrides if each != "--overwrite"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    tokenizer = load_tokenizer(str(config.models.policy.path))
    with open_parts(config, resume=None, overwrite=overwrite) as parts:
        return TruthTrainer(config, parts, tokenizer).run(resume=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
