"""Solutions in, the first rank's view of their steps out: by a PRM's rewards, or by asking a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.config import ScoreConfig
from prime_megatron.data.messages import Message
from prime_megatron.errors import InputError
from prime_megatron.evaluate.process_bench import Solution, step_scores
from prime_megatron.evaluate.responses import Encoder, Response
from prime_megatron.evaluate.step_judge import ask, first_wrong, sign_ids
from prime_megatron.families.read import read_config
from prime_megatron.generate.sample import GeneratedSample
from prime_megatron.run.judge import Judge
from prime_megatron.run.prm_scorer import PrmScorer, encode_all
from prime_megatron.run.scoring import check_scoring, resolve_prm, scoring_groups, scoring_tokenizer


@dataclass(frozen=True)
class Judged:
    """What a model says of one solution."""

    plus: tuple[float, ...]
    """Log-prob of + behind each step."""
    minus: tuple[float, ...]
    first_wrong: int
    """Index of a step, or -1."""


def by_prm(
    solutions: Sequence[Solution], prm: str, kind: str, config: ScoreConfig, world_size: int
) -> list[list[float]]:
    """Scores of every solution's steps on the first rank; nothing on the others. Collective over the world.

    kind: a key of ``process_bench.STEP_SCORES``.
    """
    folders = resolve_prm(prm, config)
    check_scoring((folders.prm, folders.reference), config, world_size)
    vocab = read_config(folders.prm).vocab
    tokenizer = scoring_tokenizer(folders.prm, vocab, config)
    responses = [_as_response(solution) for solution in solutions]
    encoded = encode_all(Encoder(tokenizer, vocab, config.max_tokens, None), responses, config.max_tokens)
    scores: list[list[float]] = []
    with scoring_groups(config) as topology:
        scorer = PrmScorer(folders, config, topology)
        for part in scorer.scores(encoded, responses):
            scores += [step_scores(one.process_rewards, encoded[one.index].step_ends, kind) for one in part]
    return scores


def by_judge(solutions: Sequence[Solution], folder: str, config: ScoreConfig, world_size: int) -> list[Judged]:
    """What the model says of every solution, on the first rank; nothing on the others. Collective over the world."""
    check_scoring((folder,), config, world_size)
    vocab = read_config(folder).vocab
    tokenizer = scoring_tokenizer(folder, vocab, config)
    plus, minus = sign_ids(tokenizer)
    asked = [ask(solution, tokenizer, plus) for solution in solutions]
    for solution, one in zip(solutions, asked, strict=True):
        size = len(one.prompt_ids) + len(one.response_ids)
        if size > config.max_tokens:
            raise InputError(
                f"{solution.origin}: is {size} tokens as it is asked, more than max_tokens {config.max_tokens}"
            )
    judged: list[Judged] = []
    with scoring_groups(config) as topology:
        judge = Judge(folder, minus, config, topology)
        for part in judge.signs(asked):
            judged += [Judged(one.plus, one.minus, first_wrong(one.plus, one.minus)) for one in part]
    return judged


def _as_response(solution: Solution) -> Response:
    prompt = (Message("user", solution.problem),)
    sample = GeneratedSample(solution.id, 0, prompt, "", truncated=False)
    return Response(sample, solution.steps, {}, solution.origin)
