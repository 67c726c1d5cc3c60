"""Inputs of the head's tests and their answers in float64, straight from the definition of softmax."""

import importlib.util
from dataclasses import dataclass

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMPLS = ["torch"] + (["triton"] if importlib.util.find_spec("triton") else [])


@dataclass(frozen=True)
class Case:
    """hidden and weight are leaves that want gradients; rows from `vocab_size` on are padding."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    vocab_size: int


def make_case(
    num_tokens: int,
    vocab_size: int,
    kind: str = "normal",
    dtype: torch.dtype = torch.float32,
    width: int = 16,
    padding: int = 0,
    seed: int = 0,
) -> Case:
    """kind: normal, flat, peaked (one logit 60 above the rest), negative or positive (all near -120 or 120)."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, width, generator=draw) / width**0.5
    weight = torch.randn(vocab_size + padding, width, generator=draw)
    labels = torch.randint(vocab_size, (num_tokens,), generator=draw)
    if kind == "flat":
        weight = weight * 1e-3
    if kind == "peaked":
        hidden[:, 0], weight[:, 0] = 1.0, 0.0
        weight[labels[: num_tokens // 2 + 1], 0] = 60.0
    if kind in ("negative", "positive"):
        hidden[:, 0], weight[:, 0] = 1.0, -120.0 if kind == "negative" else 120.0
    if padding:
        weight[vocab_size:] = 5.0  # would win if it counted
    hidden, weight = hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype)
    return Case(hidden.requires_grad_(), weight.requires_grad_(), labels.to(DEVICE), vocab_size)


def in_float64(case: Case) -> Case:
    """The same numbers, as float64 leaves."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (case.hidden, case.weight))
    return Case(hidden, weight, case.labels, case.vocab_size)


def define(case: Case, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, entropies) by definition, in the case's dtype, differentiable. Ignored labels give row 0."""
    logits = (case.hidden @ case.weight[: case.vocab_size].t()) / temperature
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lse = torch.logsumexp(logits, 1)
    probabilities = torch.exp(logits - lse[:, None])
    label_logits = logits[torch.arange(len(logits), device=logits.device), case.labels.clamp(min=0)]
    return label_logits - lse, -(probabilities * (logits - lse[:, None])).sum(1)


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference, relative to the exact answer's largest size where that exceeds 1."""
    ours, exact = ours.detach(), exact.detach()
    return float((ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1.0))


def grads(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden's, weight's) gradients, taken off the leaves."""
    found = case.hidden.grad, case.weight.grad
    case.hidden.grad = case.weight.grad = None
    return found
