"""What a run reads before it writes anything: the policy's config, the tokenizer, the prompts."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.config import TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.data.rows import read_prompt_rows
from prime_megatron.data.stream import PromptStream, eval_prompts
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.families import FamilyConfig
from prime_megatron.families.read import read_config
from prime_megatron.run.check_models import compare_models
from prime_megatron.types import Prompt
from prime_megatron.verify import Verifiers


@dataclass(frozen=True)
class Inputs:
    """Read and checked; the same on every rank."""

    family: FamilyConfig
    tokenizer: Tokenizer
    prompts: PromptStream
    held_out: list[Prompt]
    num_held_out_skipped: int
    """Held-out prompts over data.max_prompt_tokens."""


def read_inputs(config: TrainConfig, verifiers: Verifiers) -> Inputs:
    """Everything but the weights.

    Raises:
        InputError: a folder, a file, a row or an ability that cannot be used.
    """
    folder = policy_folder_of(config)
    compare_models(config)
    family = read_config(folder)
    tokenizer = load_tokenizer(folder, family.vocab, trust_remote_code=config.models.trust_remote_code)
    rows = read_prompt_rows(config.data.train, config.data.system_prompt)
    eval_rows = read_prompt_rows(config.data.eval, config.data.system_prompt) if config.data.eval else []
    for ability in sorted({row.ability for row in (*rows, *eval_rows)}):
        verifiers.require(ability)
    limit = config.data.max_prompt_tokens
    held_out, skipped = eval_prompts(eval_rows, tokenizer, max_prompt_tokens=limit, max_prompts=config.eval.max_prompts)
    prompts = PromptStream(rows, tokenizer, max_prompt_tokens=limit, seed=config.run.seed, shuffle=config.data.shuffle)
    return Inputs(family, tokenizer, prompts, held_out, skipped)
