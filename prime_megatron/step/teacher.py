"""The teacher within a step: a copy of the policy taken anew, and its scores of prompts that it reads otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prime_megatron.config.teacher import TeacherAlgorithm
from prime_megatron.errors import InputError
from prime_megatron.mcore.role import Role
from prime_megatron.step.batch import Batcher, StepBatch
from prime_megatron.types import Group


def take_copy(teacher: Role, policy: Role, config: TeacherAlgorithm, step: int) -> None:
    """Before steps 1, 1 + copy_every, ... the teacher becomes the policy as it is."""
    if (step - 1) % config.copy_every == 0:
        teacher.copy_from(policy)


def told_logprobs(
    teacher: Role, batcher: Batcher, groups: Sequence[Group], batch: StepBatch, *, temperature: float
) -> Tensor:
    """Log-probs of the batch's responses behind prompts that hold the truth, float32 [T], 0 outside the responses.

    groups: those of the whole step, the same on every rank.

    Raises:
        InputError: a recording made without the truth in its prompts.
    """
    for group in groups:
        if not group.prompt.told_ids:
            raise InputError(
                f"rollout.replay: prompt {group.prompt.uid} was recorded without its ground truth in it, which "
                "prm.teacher.mode rlsd reads; record again with this mode"
            )
    told, micro = batcher.told(groups)
    told_T = teacher.logprobs(micro, told.tokens_T.numel(), temperature=temperature).logprobs_T
    mask_T = batch.rollout.response_mask_T
    return torch.zeros(mask_T.numel(), device=told_T.device).masked_scatter(mask_T, told_T[told.response_mask_T])
