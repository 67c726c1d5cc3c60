"""The alarm that no response of a step came to its end, with the reason that its tokens show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.types import Group


def truncation_alarm(groups: Sequence[Group], tokenizer: Tokenizer, limit: int) -> str | None:
    """One line when every response was cut at the limit; None otherwise, and where there is no response.

    Args:
        groups: all that the step generated.
        limit: rollout.sampling.max_response_tokens.
    """
    samples = [sample for group in groups for sample in group.samples]
    if not samples or any(sample.finish != "length" for sample in samples):
        return None
    controls = tokenizer.control_token_ids - set(tokenizer.eos_token_ids)
    written = Counter(token for sample in samples for token in {*sample.token_ids} & controls)
    said = (
        f"every one of the {len(samples)} responses was cut at {limit} tokens (rollout.sampling.max_response_tokens): "
    )
    if written:
        token, count = written.most_common(1)[0]
        return said + (
            f"{count} of them wrote {tokenizer.name_of(token)!r} ({token}), where no response ends; if a turn ends "
            "with it, add it to eos_token_id in the model's generation_config.json"
        )
    ends = " or ".join(repr(tokenizer.name_of(token)) for token in tokenizer.eos_token_ids)
    return said + f"none wrote {ends}; the limit is too low for this task, or the model does not end its turns"
