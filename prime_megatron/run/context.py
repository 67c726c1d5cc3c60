"""How long a prompt may be, so that its response fits into the model's positions: told before anything is started."""

from __future__ import annotations

from prime_megatron.config import TrainConfig
from prime_megatron.config.check import policy_folder_of
from prime_megatron.config.roles import has_told_teacher
from prime_megatron.errors import InputError
from prime_megatron.families import FamilyConfig

SPARE_TOKENS = {"sglang": 8, "vllm": 0, "embedded": 0, "replay": 0}
"""Of the model's longest sequence, what an engine keeps for itself."""


def prompt_limit(config: TrainConfig, family: FamilyConfig) -> tuple[int, str | None]:
    """(longest prompt in tokens, a warning where the model holds fewer than data.max_prompt_tokens).

    Raises:
        InputError: the model holds no prompt beside a response of rollout.sampling.max_response_tokens.
    """
    response, wanted = config.rollout.sampling.max_response_tokens, config.data.max_prompt_tokens
    truth = config.prm.teacher.max_truth_tokens if has_told_teacher(config) else 0
    room = family.max_positions - max(SPARE_TOKENS[config.rollout.engine], truth) - response
    where = f"{policy_folder_of(config)}/config.json has max_position_embeddings {family.max_positions}"
    if room < 1:
        raise InputError(
            f"rollout.sampling.max_response_tokens: {response} leaves no room for a prompt: {where}; lower the key"
            + (f" (or prm.teacher.max_truth_tokens {truth})" if truth else "")
        )
    if room >= wanted:
        return wanted, None
    return room, (
        f"data.max_prompt_tokens {wanted} and rollout.sampling.max_response_tokens {response} are more than the model "
        f"holds ({where}): prompts over {room} tokens are skipped"
    )
