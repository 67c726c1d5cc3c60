"""What a run reads before it writes anything: the policy's config, the tokenizer, the prompts."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.config import DataConfig, TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.data.rows import PromptRow, read_prompt_rows
from prime_megatron.data.stream import PromptStream, eval_prompts
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.errors import InputError
from prime_megatron.evaluate.responses import Encoder, read_held_out
from prime_megatron.families import FamilyConfig
from prime_megatron.families.read import read_config
from prime_megatron.parallel.collectives import gather_all
from prime_megatron.run.check_models import compare_models
from prime_megatron.types import Group, Prompt
from prime_megatron.verify import Verifiers
from prime_megatron.verify.code.check import prove_jail


@dataclass(frozen=True)
class Inputs:
    """Read and checked; the same on every rank."""

    family: FamilyConfig
    tokenizer: Tokenizer
    prompts: PromptStream
    held_out: list[Prompt]
    num_held_out_skipped: int
    """Held-out prompts over data.max_prompt_tokens."""
    labelled: list[Group]
    """Of eval.prm_rows."""
    left_out: tuple[str, ...]
    """What data.skip_abilities and data.bad_truth left out, a line each."""


def read_inputs(config: TrainConfig, verifiers: Verifiers) -> Inputs:
    """Everything but the weights. Collective over the world.

    Raises:
        InputError: a folder, a file, a row or an ability that cannot be used; code rows on a machine that does not hold
            what programs try.
    """
    folder = policy_folder_of(config)
    compare_models(config)
    family = read_config(folder)
    tokenizer = load_tokenizer(folder, family.vocab, trust_remote_code=config.models.trust_remote_code)
    refusal, rows, eval_rows, left_out = None, [], [], ()
    try:
        rows, left_out = _usable_rows(config.data.train, config.data, verifiers)
        eval_rows, eval_left_out = _usable_rows(config.data.eval, config.data, verifiers)
        left_out += eval_left_out
        programs = any(verifiers.runs_programs(row.ability) for row in (*rows, *eval_rows))
        if programs and config.verify.code.jail != "none":
            prove_jail(config.verify.code)
    except InputError as error:
        refusal = str(error)
    # One node's kernel may refuse what another's does not: all ranks end, or none.
    refusals = [text for text in gather_all(refusal) if text is not None]
    if refusals:
        raise InputError(refusals[0])
    limit = config.data.max_prompt_tokens
    held_out, skipped = eval_prompts(eval_rows, tokenizer, max_prompt_tokens=limit, max_prompts=config.eval.max_prompts)
    prompts = PromptStream(rows, tokenizer, max_prompt_tokens=limit, seed=config.run.seed, shuffle=config.data.shuffle)
    longest = limit + config.rollout.sampling.max_response_tokens
    labelled = read_held_out(config.eval.prm_rows, Encoder(tokenizer, family.vocab, longest, step_end_table_V=None))
    return Inputs(family, tokenizer, prompts, held_out, skipped, labelled, left_out)


def _usable_rows(
    paths: Sequence[str], config: DataConfig, verifiers: Verifiers
) -> tuple[list[PromptRow], tuple[str, ...]]:
    """Rows that can be scored, and a line for each kind that was left out."""
    rows: list[PromptRow] = []
    left_out: collections.Counter[str] = collections.Counter()
    first_bad = ""
    for row in read_prompt_rows(paths, config.system_prompt):
        if row.ability in config.skip_abilities:
            left_out[f"data.skip_abilities: rows of ability {row.ability!r} left out"] += 1
            continue
        try:
            problem = verifiers.truth_problem(row.ability, row.ground_truth)
        except InputError as error:
            raise InputError(f"{row.origin}: {error}") from None
        if problem is None:
            rows.append(row)
        elif config.bad_truth == "refuse":
            raise InputError(f"{row.origin}: ground truth: {problem} (data.bad_truth=skip leaves such rows out)")
        else:
            first_bad = first_bad or f"{row.origin}: {problem}"
            left_out["data.bad_truth: rows without a usable ground truth left out"] += 1
    if paths and not rows:
        raise InputError(f"{', '.join(paths)}: no row is left to use ({first_bad or 'data.skip_abilities'})")
    lines = tuple(f"{count} {line}" for line, count in left_out.items())
    return rows, (*lines, *([f"the first of them: {first_bad}"] if first_bad else []))
