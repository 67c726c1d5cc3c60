"""A policy objective against numpy: random shapes, value and gradient to 1e-6, whole and cut into chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from prime_megatron.algo.losses import PolicyLoss
from prime_megatron.algo.objectives import OBJECTIVES, Objective
from prime_megatron.algo.token_loss import TokenTerms


@dataclass(frozen=True)
class Drawn:
    """Arrays [t] of whole sequences; the advantages of one sequence are one number or not."""

    new: np.ndarray
    old: np.ndarray
    advantage: np.ndarray
    weight: np.ndarray
    edges: list[int]

    @property
    def spans(self) -> list[slice]:
        return [slice(a, b) for a, b in pairwise(self.edges)]


Oracle = Callable[[Drawn], tuple[np.ndarray, np.ndarray]]
"""(loss a token, derivative of sum_t weight_t * loss_t in each log-prob)."""


def draw(seed: int, *, one_advantage: bool, spread: float = 0.5) -> Drawn:
    """1 to 6 sequences of 1 to 40 tokens; some tokens have no weight."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 41, rng.integers(1, 7))
    edges = [0, *np.cumsum(lengths).tolist()]
    count = edges[-1]
    old = -rng.exponential(size=count)
    advantage = np.repeat(rng.normal(size=len(lengths)), lengths) if one_advantage else rng.normal(size=count)
    weight = np.where(rng.random(count) < 0.8, rng.random(count), 0.0)
    return Drawn(old + spread * rng.normal(size=count), old, advantage, weight, edges)


def loss_of(drawn: Drawn, objective: Objective, **settings: float) -> PolicyLoss:
    advantage, weight, old = (torch.tensor(x) for x in (drawn.advantage, drawn.weight, drawn.old))
    boundaries = tuple(drawn.edges) if objective.whole_sequences else None
    return PolicyLoss(advantage, weight, old, objective=objective, boundaries=boundaries, **settings)


def check(name: str, oracle: Oracle, drawn: Drawn, **settings: float) -> TokenTerms:
    """The registered objective's closed form, its definition under autograd, and its sum over chunks."""
    loss, new = loss_of(drawn, OBJECTIVES[name], **settings), torch.tensor(drawn.new)
    wanted, slope = oracle(drawn)
    count, entropy = new.numel(), torch.zeros(new.numel(), dtype=torch.float64)
    terms = loss.terms(new, entropy, slice(0, count))
    total = float((drawn.weight * wanted).sum())
    np.testing.assert_allclose(float(terms.loss), total, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(terms.dlogprobs_t.numpy(), slope, rtol=1e-6, atol=1e-9)
    kept = drawn.weight > 0
    assert terms.stats["policy_num_tokens"] == kept.sum()
    np.testing.assert_allclose(float(terms.stats["policy_loss_sum"]), wanted[kept].sum(), rtol=1e-6, atol=1e-9)
    leaf = new.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss.plain(leaf, entropy), leaf)
    np.testing.assert_allclose(gradient.numpy(), slope, rtol=1e-6, atol=1e-9)
    parts = [loss.terms(new[span], entropy[span], span) for span in drawn.spans]
    np.testing.assert_allclose(torch.cat([part.dlogprobs_t for part in parts]).numpy(), slope, rtol=1e-6, atol=1e-9)
    for key, value in terms.stats.items():
        np.testing.assert_allclose(float(sum(part.stats[key] for part in parts)), float(value), rtol=1e-6, atol=1e-6)
    return terms
