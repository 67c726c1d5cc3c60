"""The implicit PRM's rewards for given responses, by Megatron's models in any layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.process_reward import process_rewards
from prime_megatron.algo.reduction import LOCAL
from prime_megatron.algo.statistics import prm_statistics
from prime_megatron.config import Granularity, PrmAlgorithm, RewardNorm, ScoreConfig
from prime_megatron.errors import InputError
from prime_megatron.evaluate.responses import Encoded, Encoder, Response, as_sample
from prime_megatron.mcore.role import Role
from prime_megatron.parallel.collectives import gather_to_first
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.models import DTYPES
from prime_megatron.run.scoring import PrmFolders
from prime_megatron.step.batch import Batcher
from prime_megatron.step.prm import HELD_OUT, role_logprobs
from prime_megatron.types import Group, Prompt, RolloutBatch


@dataclass(frozen=True)
class Scored:
    """What the PRM gives one response."""

    index: int
    """Of the response among those that were asked for."""
    process_rewards: tuple[float, ...]
    """beta * (log PRM - log reference) of each response token."""
    step_rewards: tuple[float, ...]
    """The same summed over each step."""
    logit: float
    """Of the PRM's probability that the response is right: the sum of its rewards, or their mean (``PrmFolders``)."""


def frozen_role(name: str, folder: str, config: ScoreConfig, topology: Topology) -> Role:
    """A model that only scores."""
    return Role(name, folder, topology, config.roles_parallel(), dtype=DTYPES[config.dtype], optimizer=None)


def encode_all(encoder: Encoder, responses: Sequence[Response], max_tokens: int) -> list[Encoded]:
    """The tokens of every response; raises InputError for one that is too long or has none, by file and row."""
    encoded = []
    for response in responses:
        one = encoder.encode(response)
        if one is None:
            raise InputError(
                f"{response.origin}: prompt and response have no token, or more than {max_tokens} together (max_tokens)"
            )
        encoded.append(one)
    return encoded


class PrmScorer:
    """PRM and reference, laid out over the topology.

    Args:
        folders: PRM, reference and coefficient.
        config: layout and batch.
        topology: sizes, groups and this rank's place.
    """

    def __init__(self, folders: PrmFolders, config: ScoreConfig, topology: Topology) -> None:
        self.topology = topology
        self.batch_size = config.batch_size
        self.batcher = Batcher(topology, config.packing)
        self.prm = frozen_role("prm", folders.prm, config, topology)
        self.reference = frozen_role("reference", folders.reference, config, topology)
        self.algorithm = PrmAlgorithm(beta=folders.beta, norm=RewardNorm.none)
        self.means = folders.means

    def scores(self, encoded: Sequence[Encoded], responses: Sequence[Response]) -> Iterator[list[Scored]]:
        """The rewards, batch by batch in the order given, on the first rank; empty lists on the others. Collective."""
        for start in range(0, len(encoded), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(encoded)))
            groups = [
                Group(Prompt(str(i), i, encoded[i].prompt_ids, "", ""), (as_sample(encoded[i], responses[i]),))
                for i in indices
            ]
            batch = self.batcher(groups)
            prm_T, reference_T = role_logprobs(self.prm, batch), role_logprobs(self.reference, batch)
            rollout = with_step_ends(batch.rollout, encoded)
            mine: list[Scored] = []
            if self.topology.leads_model:
                token_T = process_rewards(rollout, prm_T, reference_T, self.algorithm, LOCAL)
                by_step = self.algorithm.model_copy(update={"granularity": Granularity.step})
                step_T = process_rewards(rollout, prm_T, reference_T, by_step, LOCAL)
                mine = _read_out(rollout, token_T.tolist(), step_T.tolist(), encoded, means=self.means)
            found = [one for part in gather_to_first(mine) for one in part]
            yield sorted(found, key=lambda one: one.index)


def with_step_ends(rollout: RolloutBatch, encoded: Sequence[Encoded]) -> RolloutBatch:
    """The batch with the steps' ends as the responses have them; a prompt's draw is the response's index."""
    ends = torch.zeros(rollout.tokens_T.numel(), dtype=torch.bool)
    for group, stop in zip(rollout.groups, rollout.cu_seqlens.tolist()[1:], strict=True):
        one = encoded[group.prompt.draw]
        ends[[stop - len(one.response_ids) + end for end in one.step_ends]] = True
    return dataclasses.replace(rollout, step_end_T=ends.to(rollout.tokens_T.device))


def _read_out(
    rollout: RolloutBatch, token: Sequence[float], step: Sequence[float], encoded: Sequence[Encoded], *, means: bool
) -> list[Scored]:
    found = []
    for group, stop in zip(rollout.groups, rollout.cu_seqlens.tolist()[1:], strict=True):
        index = group.prompt.draw
        one = encoded[index]
        start = stop - len(one.response_ids)
        # A step without a token of its own ends where the one before it does, and earns nothing.
        before = (-1, *one.step_ends)
        by_step = tuple(step[start + end] if end != last else 0.0 for last, end in zip(before, one.step_ends))
        rewards = tuple(token[start:stop])
        found.append(Scored(index, rewards, by_step, sum(rewards) / len(rewards) if means else sum(rewards)))
    return found


def outcome_figures(responses: Sequence[Response], scored: Sequence[Scored], beta: float) -> dict[str, float]:
    """How well the scores tell the outcomes of graded responses: HELD_OUT's metrics, as training names them."""
    prompts: dict[object, int] = {}
    group = [prompts.setdefault(one.sample.prompt or one.sample.prompt_ids, len(prompts)) for one in responses]
    q_N = torch.tensor([one.logit for one in scored], dtype=torch.float64) / beta
    outcome_N = torch.tensor([one.sample.outcome for one in responses], dtype=torch.float64)
    figures = finish(prm_statistics(q_N, outcome_N, torch.tensor(group), beta))
    return {name: figures[name] for name in HELD_OUT}
