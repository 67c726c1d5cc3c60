"""Watches the PRM: held-out responses, the scores of its frozen copy on them, checks, and what an alarm changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prime_megatron.algo.health import Alarm, ResponseSums, ranking, response_sums, reward_place
from prime_megatron.algo.prm_loss import logit_scores
from prime_megatron.algo.reduction import Reduction
from prime_megatron.config import CollapseAction, TrainConfig
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.device import current_device
from prime_megatron.errors import InputError
from prime_megatron.parallel.collectives import from_rank
from prime_megatron.step.batch import Batcher
from prime_megatron.step.prm import LogRatioTerms
from prime_megatron.types import Group, Prompt, RolloutBatch, Sample

PREFIX = "prm_health/"


@dataclass(frozen=True)
class PrmUse:
    """What a step makes of the PRM."""

    learns: bool
    """It is updated."""
    rewards: bool
    """Its process rewards enter the advantage."""


class PrmHealth:
    """Checks the PRM every n steps and decides what steps make of it. Every rank decides alike: from figures of the
    first rank's, which are made of sums over all.

    The frozen copy is not kept: what it would give is its log-prob of every held-out response, taken once, before the
    PRM's first update, by the passes and in the batches of every later check. Weights that never change give the same
    numbers again, in one layout to the last bit, so its pair accuracy, AUC and calibration are a copy's.

    Args:
        config: the run.
        labelled: responses of eval.prm_rows; none: those of the first steps are held out.
        batcher: lays them out.
        delimiter_V: bool [vocabulary], tokens that only give form: prm.step_delimiter, control tokens.
        reduce: over the data-parallel ranks.
    """

    def __init__(
        self,
        config: TrainConfig,
        labelled: Sequence[Group],
        batcher: Batcher,
        delimiter_V: Tensor | None,
        reduce: Reduction,
    ) -> None:
        self.config = config.prm
        self.at_once = config.rollout.prompts_per_step
        self.batcher = batcher
        self.delimiter_V = delimiter_V
        self.reduce = reduce
        self.alarm = Alarm(config.prm.health)
        self.groups: list[Group] = []
        self._from_file = bool(labelled)
        if self.watches:
            self._hold_out(labelled)
        if labelled and self.watches and not self._has_pair:
            raise InputError(
                "eval.prm_rows: prm.health needs a prompt with responses of different outcomes, and there is none; "
                "name other rows"
            )
        self.frozen_N: Tensor | None = None
        """Log-prob of every held-out response under the PRM as it was before its first update, float64 [N]."""

    @property
    def watches(self) -> bool:
        """Whether prm.health is on."""
        return self.config.health.every > 0

    def begin(self, step: int, logprobs: LogRatioTerms) -> PrmUse:
        """What step ``step`` makes of the PRM, by the checks before it; called before the PRM learns. Collective."""
        if not self.watches:
            return PrmUse(learns=True, rewards=True)
        if self.frozen_N is None and self._is_complete(step):
            self.frozen_N = self._sums(logprobs).prm_N
        action = self.config.on_collapse if self.alarm.on else CollapseAction.warn
        return PrmUse(
            learns=self.frozen_N is not None and action is not CollapseAction.freeze,
            rewards=action is not CollapseAction.outcome_only,
        )

    def end(self, step: int, groups: Sequence[Group], logprobs: LogRatioTerms) -> dict[str, float]:
        """Hold out the step's groups or check the PRM, as is due; the figures of prm_health/, alike on every rank.

        Called after the PRM has learned; what a check finds acts from the next step on. Collective over the world.
        """
        if not self.watches:
            return {}
        figures: dict[str, float] = {}
        if self.frozen_N is None:
            self._hold_out(groups)
        elif step % self.config.health.every == 0:
            figures = from_rank(self._figures(self._sums(logprobs)))
            figures["change"] = self.alarm.check(figures["pair_accuracy"], figures["frozen_pair_accuracy"])
            figures["failed_checks"] = self.alarm.failed
        figures["alarm"] = float(self.alarm.on)
        return {f"{PREFIX}{name}": float(value) for name, value in figures.items()}

    def state(self) -> dict[str, Any]:
        """Held-out responses, the frozen copy's scores of them, the alarm, as JSON values."""
        rows = [
            {"prompt": group.prompt.token_ids, "responses": [[s.token_ids, s.outcome] for s in group.samples]}
            for group in self.groups
        ]
        frozen = None if self.frozen_N is None else self.frozen_N.tolist()
        return {"groups": rows, "frozen": frozen, "alarm": self.alarm.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state`; what eval.prm_rows names now does not count."""
        self.groups = []
        for row in state["groups"]:
            samples = tuple(_sample(tuple(ids), float(outcome)) for ids, outcome in row["responses"])
            self.groups.append(Group(self._prompt(tuple(row["prompt"])), samples))
        self.frozen_N = None if state["frozen"] is None else torch.tensor(state["frozen"], dtype=torch.float64)
        self.alarm.restore(state["alarm"])

    def _hold_out(self, groups: Sequence[Group]) -> None:
        """Keep token ids and outcomes; a prompt's draw is its place in the set."""
        for group in groups:
            samples = tuple(_sample(sample.token_ids, sample.outcome) for sample in group.samples)
            self.groups.append(Group(self._prompt(group.prompt.token_ids), samples))

    def _prompt(self, token_ids: tuple[int, ...]) -> Prompt:
        return Prompt(str(len(self.groups)), len(self.groups), token_ids, "", "")

    def _is_complete(self, step: int) -> bool:
        """Whether nothing more is held out when this step begins."""
        return self._has_pair and (step > self.config.health.steps or self._from_file)

    @property
    def _has_pair(self) -> bool:
        return any(len(set(group.outcomes)) > 1 for group in self.groups)

    def _sums(self, logprobs: LogRatioTerms) -> ResponseSums:
        """Of every held-out response, on every rank: each adds its own to a table of zeros, so the sum is exact."""
        first = [0]
        for group in self.groups:
            first.append(first[-1] + len(group.samples))
        names = [field.name for field in dataclasses.fields(ResponseSums)]
        table_NF = torch.zeros(first[-1], len(names), dtype=torch.float64)
        for rollout, prm_T, ref_T in self._scored(logprobs):
            place = [first[g.prompt.draw] + k for g in rollout.groups for k in range(len(g.samples))]
            assert self.delimiter_V is not None
            mine = response_sums(rollout, prm_T, ref_T, self.delimiter_V, self.config)
            table_NF[place] = torch.stack([getattr(mine, name) for name in names], 1).cpu()
        table_NF = self.reduce.sum(table_NF.to(self.delimiter_V.device)).cpu()
        return ResponseSums(**dict(zip(names, table_NF.unbind(1), strict=True)))

    def _scored(self, logprobs: LogRatioTerms) -> Iterator[tuple[RolloutBatch, Tensor, Tensor]]:
        for start in range(0, len(self.groups), self.at_once):
            batch = self.batcher(self.groups[start : start + self.at_once])
            yield batch.rollout, *logprobs(batch)

    def _figures(self, sums: ResponseSums) -> dict[str, float]:
        samples = [(index, sample) for index, group in enumerate(self.groups) for sample in group.samples]
        group_N = torch.tensor([index for index, _ in samples])
        outcome_N = torch.tensor([sample.outcome for _, sample in samples], dtype=torch.float64)
        length_N = torch.tensor([len(sample.token_ids) for _, sample in samples], dtype=torch.float64)
        assert self.frozen_N is not None
        online, frozen = (
            ranking(logit_scores(prm_N - sums.ref_N, length_N, self.config.loss), outcome_N, group_N, self.config)
            for prm_N in (sums.prm_N, self.frozen_N)
        )
        return (
            online
            | {f"frozen_{name}": value for name, value in frozen.items()}
            | reward_place(sums, outcome_N, length_N)
        )


def form_table(tokenizer: Tokenizer, delimiter: str, vocab: int) -> Tensor:
    """Tokens that give a response its form: those that contain the delimiter, and control tokens (tags, ends of turns);
    bool [vocab], on this rank's device."""
    table_V = tokenizer.contains(delimiter, vocab)
    table_V[[id_ for id_ in tokenizer.control_token_ids if id_ < vocab]] = True
    return table_V.to(current_device())


def _sample(token_ids: tuple[int, ...], outcome: float) -> Sample:
    return Sample(token_ids, (0.0,) * len(token_ids), "stop", 0, outcome=outcome)
