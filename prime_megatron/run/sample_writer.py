"""What of a step goes to samples.jsonl: gathered from the ranks that decoded the texts and trained on the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from prime_megatron.config import TrainConfig
from prime_megatron.data.token_ends import TokenEnds
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.evaluate.held_out import Evaluation
from prime_megatron.metrics import SamplesLog, credits_of, held_out_rows, rejected_rows, sample_rows
from prime_megatron.parallel.collectives import gather_to_first
from prime_megatron.parallel.topology import Topology
from prime_megatron.rollout.exchange import with_texts
from prime_megatron.step.metrics import StepRecord, prm_judgement
from prime_megatron.types import Group


class SampleWriter:
    """All ranks call it; only the first one writes. Collective.

    Args:
        log: the run's samples.jsonl.
        config: the run.
        topology: this rank's place.
        tokenizer: the policy's, which made the texts.
        writing: holds back why a file could not be written until all ranks can hear of it.
    """

    def __init__(
        self,
        log: SamplesLog,
        config: TrainConfig,
        topology: Topology,
        tokenizer: Tokenizer,
        writing: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._log = log
        self._config = config
        self._topology = topology
        self._token_ends = TokenEnds(tokenizer.hf)
        self._writing = writing

    def write_batch(self, step: int, record: StepRecord) -> None:
        """What the step trained on, and some of what its filter dropped, where the step's samples are wanted."""
        if not self._log.wants(step):
            return
        chosen = self._log.choose(record.collected.groups)
        judged = prm_judgement(record, self._config)
        probability_N = None if judged is None else judged.probability_N
        mine = []
        if self._topology.leads_model:
            mine = credits_of(record.batch.rollout, record.advantages, chosen, probability_N)
        credits = gather_to_first(mine)
        chosen = self._with_texts(chosen)
        if self._topology.rank == 0:
            with self._writing():
                self._log.write(step, sample_rows(chosen, [credit for part in credits for credit in part]))
        self.write_rejected(step, record.collected.rejected)

    def write_rejected(self, step: int, rejected: Sequence[tuple[Group, str]]) -> None:
        """Some of the responses to prompts that the filter dropped in this step, which may starve."""
        if not self._log.on:
            return
        chosen = self._log.choose_rejected(rejected)
        groups = self._with_texts([group for group, _ in chosen])
        with self._writing():
            self._log.write(step, rejected_rows(list(zip(groups, [said for _, said in chosen], strict=True))))

    def write_held_out(self, step: int, evaluation: Evaluation) -> None:
        """Answers of an evaluation."""
        if not self._log.on:
            return
        for kind, answered in (("held_out", evaluation.greedy), ("held_out_sampled", evaluation.sampled)):
            rows = held_out_rows(kind, self._with_texts(self._log.choose_held_out(answered)))
            with self._writing():
                self._log.write(step, rows)

    def _with_texts(self, groups: Sequence[Group]) -> list[Group]:
        return with_texts(groups, self._token_ends)
