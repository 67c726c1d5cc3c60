# mypy: disable-error-code="no-untyped-def"
"""The implicit PRM's rewards by transformers alone: what a scoring run is checked against, and, as text, the usage of a
PRM's model card. Nothing of ours is imported here."""

from __future__ import annotations

import torch


def logprobs(model, prompt_ids, response_ids):
    """Log-prob (nats) of each response token, float32 [response]."""
    logits = model(torch.tensor([[*prompt_ids, *response_ids]])).logits[0, len(prompt_ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(response_ids)[:, None])[:, 0]


@torch.no_grad()
def rewards(prm, reference, beta, prompt_ids, response_ids):
    """beta * (log prm - log reference) of each response token, float32 [response]."""
    return beta * (logprobs(prm, prompt_ids, response_ids) - logprobs(reference, prompt_ids, response_ids))
