"""A teacher in the PRM's place (prm.kind teacher): how its judgement of a token becomes advantage."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, PositiveInt

from prime_megatron.config.base import Section

TRUTH = "{truth}"
"""Stands for the ground truth in a text."""


class TeacherMode(StrEnum):
    """What T_t = log P_T(y_t) - log P_old(y_t) does; A is the outcome's advantage, alpha advantage.process_weight."""

    ratio = "ratio"
    """A + alpha * T_t; with advantage.outcome_weight 0 plain distillation on the policy's own responses (GKD, OPD)."""
    iw_opd = "iw_opd"
    """A + alpha * w_t * T_t, w_t falling over the response as student and teacher part (IW-OPD)."""
    rlsd = "rlsd"
    """A * (1 - l + l * clip(exp(sign(A) * T_t))): the outcome keeps the sign. The teacher is a copy of the policy that
    sees the ground truth in its prompt (RLSD)."""


class TeacherAlgorithm(Section):
    """The teacher's formulas (arXiv 2306.13649, 2606.22600, 2604.03128)."""

    mode: TeacherMode = TeacherMode.ratio
    """What its judgement does."""
    late_discount: float = Field(default=0.5, ge=0.0)
    """g of iw_opd: w_t = 1 + g * (1 - sum_{s<t} |T_s| / sum_s |T_s|)."""
    clip: float = Field(default=0.2, gt=0.0, lt=1.0)
    """e of rlsd: the token's weight stays within 1 - e to 1 + e."""
    mix: float = Field(default=0.5, gt=0.0, le=1.0)
    """l of rlsd in the first step; it falls linearly to 0 over mix_steps."""
    mix_steps: PositiveInt = 50
    """Steps of rlsd after which the teacher is not asked any more."""
    copy_every: PositiveInt = 20
    """Steps of rlsd after which the copy of the policy is taken anew."""
    truth_text: str = "\n\n(The correct final answer is {truth}.)"
    """What rlsd's copy sees behind the last user message; {truth} stands for the row's ground truth."""
    max_truth_tokens: PositiveInt = 256
    """Most tokens by which that lengthens a prompt; rows with a longer one are skipped."""
