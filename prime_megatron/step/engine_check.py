"""Before a run's first update: does the engine compute the trainer's model?

Rounding alone makes their log-probs differ. A gap far beyond it means that one of them reads the model otherwise (a
rotary base, a window, a bias), and then every importance ratio of the run would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from prime_megatron.algo.reduction import Reduction
from prime_megatron.config import TrainConfig
from prime_megatron.errors import RunError
from prime_megatron.mcore.role import Role
from prime_megatron.mcore.rounding import HALF_STEP, other_roundings
from prime_megatron.step.batch import StepBatch
from prime_megatron.types import PackedSequences

FLOAT32_GAP = 1e-3
"""Largest sound mean |engine - trainer| where both compute in float32; sound ones are about 1e-6 on a CPU, and a GPU's
kernels may use TF32."""
MARGIN = 3.0
"""Times what rounding explains."""


class EngineCheck:
    """Compares once, on the first sequences of the first batch. Collective over the world.

    The limit: rollout.logprob_alarm where it is set; FLOAT32_GAP in float32; in bfloat16 MARGIN times the trainer's own
    mean |difference| under other roundings, and what rounding its logits costs the engine. A nucleus (top_p) may add
    -ln(top_p): the engine's log-probs are those of the cut distribution.

    What it measures is the limit of every later step's alarm, too.
    """

    def __init__(self, config: TrainConfig, policy: Role, reduce: Reduction, say: Callable[[str], None]) -> None:
        self.config, self.policy, self.reduce, self.say = config, policy, reduce, say
        self.limit: float | None = None
        """Largest sound mean |engine - trainer|; None before it is measured, and for a recording, whose log-probs are
        another run's."""

    @property
    def due(self) -> bool:
        """Whether it is still to be measured: it reads the policy."""
        return self.limit is None and self.config.rollout.engine != "replay"

    def __call__(self, batch: StepBatch, version: int) -> None:
        """Raises RunError, on every rank: the gap is far beyond rounding."""
        sizes = self.policy.topology.sizes
        # An interleaved schedule takes micro-batches by groups of as many as there are stages.
        micro = list(batch.policy[0].micro[: sizes.pipeline if sizes.virtual_pipeline > 1 else 1])
        fresh_T = self._fresh(batch, micro, version)
        scored_T = self._logprobs(micro, batch)
        gap = self._mean((scored_T - batch.rollout.engine_logprobs_T).abs(), fresh_T)
        if gap is None:
            return  # no token of this version was sampled here
        limit, why = self._limit(micro, batch, scored_T, fresh_T)
        self.limit = limit
        found = f"engine and trainer log-probs differ by {gap:.2e} on average before the first update"
        if not gap <= limit:
            raise RunError(
                f"{found}, {why} explains {limit:.1e}: they do not compute the same model; compare "
                f"{self.policy.folder}/config.json with what the engine says of it (limit: rollout.logprob_alarm)"
            )
        self.say(f"{found}; {why} explains {limit:.1e}")

    def _limit(
        self, micro: list[PackedSequences], batch: StepBatch, scored_T: Tensor, fresh_T: Tensor
    ) -> tuple[float, str]:
        rollout = self.config.rollout
        if rollout.logprob_alarm is not None:
            return rollout.logprob_alarm, "rollout.logprob_alarm"
        nucleus = -math.log(rollout.sampling.top_p)
        engine = rollout.dtype or self.config.models.dtype
        if self.config.models.dtype == engine == "float32":
            return FLOAT32_GAP + nucleus, "float32"
        with other_roundings(self.policy.chunks):
            moved_T = self._logprobs(micro, batch)
        own = self._mean((moved_T - scored_T).abs(), fresh_T) or 0.0
        logits_T = self.policy.target_logits(micro, batch.num_local_tokens, temperature=rollout.sampling.temperature)
        output = self._mean(logits_T.abs() * HALF_STEP / 2, fresh_T) or 0.0
        return MARGIN * (own + output) + nucleus, "bfloat16 rounding"

    def _logprobs(self, micro: list[PackedSequences], batch: StepBatch) -> Tensor:
        temperature = self.config.rollout.sampling.temperature
        return self.policy.logprobs(micro, batch.num_local_tokens, temperature=temperature).logprobs_T

    def _fresh(self, batch: StepBatch, micro: list[PackedSequences], version: int) -> Tensor:
        """bool [T]: response tokens of these micro-batches that the present weights made."""
        rollout = batch.rollout
        chosen_T = torch.zeros_like(rollout.response_mask_T)
        for one in micro:
            chosen_T[one.source_S[one.real_S]] = True
        return chosen_T & rollout.response_mask_T & (rollout.version_N == version)[rollout.sequence_T]

    def _mean(self, values_T: Tensor, mask_T: Tensor) -> float | None:
        """Over all data-parallel ranks; None without a token."""
        sums = torch.stack([values_T[mask_T].double().sum(), mask_T.double().sum()])
        total, count = self.reduce.sum(sums).tolist()
        return total / count if count else None
