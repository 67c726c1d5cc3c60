"""A policy objective of one's own: ``policy.objective: package.module:function``.

The function takes `ObjectiveTokens` and returns the loss of each token, a tensor [t] that autograd can differentiate in
``logprobs_t``, or a `Surrogate` with figures to log. Whole sequences come together. It runs in the trainer, on every
rank, so it must not communicate.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from prime_megatron.algo.objectives.base import Objective, ObjectiveTokens, Surrogate
from prime_megatron.config.dotted import resolve
from prime_megatron.errors import InputError

KEY = "policy.objective"


def custom_objective(path: str) -> Objective:
    """The objective that a config names by its path, tried on seven tokens of two sequences.

    Raises:
        InputError: as `config.dotted.resolve`; or it fails, or what it returns is not a finite, differentiable loss a
            token.
    """
    function = resolve(path, KEY)

    def surrogate(tokens: ObjectiveTokens) -> Surrogate:
        result = function(tokens)
        return Surrogate(result) if isinstance(result, Tensor) else result

    objective = Objective(path, surrogate, whole_sequences=True)
    _try(objective)
    return objective


def _try(objective: Objective) -> None:
    old_t = -torch.arange(1.0, 8.0)
    logprobs_t = (old_t + 0.1).requires_grad_()
    tokens = ObjectiveTokens(logprobs_t, old_t, torch.linspace(-1.0, 1.0, 7), (4, 3), 0.2, 0.2, 3.0)
    try:
        with torch.enable_grad():
            result = objective.surrogate(tokens)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{KEY}: {objective.name} fails on seven tokens of two sequences: {reason}") from None
    fault = _fault(result)
    if fault is not None:
        raise InputError(f"{KEY}: {objective.name} {fault}; it returns a loss a token, or a Surrogate")


def _fault(result: object) -> str | None:
    """What is wrong with a result for seven tokens."""
    if not isinstance(result, Surrogate):
        return f"returns a {type(result).__name__}"
    values = {"loss_t": result.loss_t, "low_t": result.low_t, "high_t": result.high_t, **result.figures}
    for name, value_t in values.items():
        if value_t is not None and (not isinstance(value_t, Tensor) or value_t.shape != (7,)):
            shape = list(value_t.shape) if isinstance(value_t, Tensor) else type(value_t).__name__
            return f"returns {name} of {shape} for seven tokens"
    for name in result.figures:
        if re.fullmatch(r"\w+", name) is None:
            return f"names a figure {name!r}, which is not one word"
    if not result.loss_t.requires_grad:
        return "returns a loss that does not depend on logprobs_t"
    return None if bool(torch.isfinite(result.loss_t).all()) else "returns a loss that is not finite"
