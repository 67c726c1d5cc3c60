"""In bf16 the head is never worse than the naive bf16 form: product in bf16, then log-softmax of it in fp32.

The bound is 1.0 times the naive form's error against float64. Log-probabilities and entropies keep it case by case, up
to fp32 rounding at the size of the tempered logits. Both forms round the gradient in the logits to bf16 before
they multiply it, and which one is luckier in a case is chance; so gradients keep the bound on the root mean square
over all cases of a kind, to three decimals.
"""

import sys

import head_cases
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from head_cases import DEVICE, IMPLS, Case, define, grads, in_float64, make_case

from prime_megatron.algo.losses import PolicyLoss
from prime_megatron.kernels import logprob_cpu
from prime_megatron.kernels.logprob import fused_logprob_loss, token_logprobs
from tests.support.ranks import run_ranks

KINDS = ["normal", "flat", "peaked", "negative", "positive", "offset"]
TEMPERATURES = [0.3, 1.0, 2.0]
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _case(kind: str, num_tokens: int, vocab_size: int, seed: int) -> Case:
    """offset: logits that differ by thousandths around -120.3, so that bf16 rounds all of them alike."""
    base = "flat" if kind == "offset" else kind
    case = make_case(num_tokens, vocab_size, base, dtype=torch.bfloat16, width=32, seed=seed)
    if kind == "offset":
        with torch.no_grad():
            case.hidden[:, 0], case.weight[:, 0] = 1.0, -120.3
    return case


def _loss(case: Case, exact: Case, temperature: float) -> PolicyLoss:
    """PPO with entropy and KL, near the policy that it is taken at."""
    near = define(exact, temperature)[0].detach().float()
    noise = torch.randn(3, len(near), generator=torch.Generator().manual_seed(5)).to(DEVICE)
    return PolicyLoss(
        advantages_T=noise[0], weights_T=torch.ones_like(near), old_logprobs_T=near + 0.1 * noise[1],
        entropy_coef=0.3, kl_coef=0.1, ref_logprobs_T=near + 0.1 * noise[2],
    )  # fmt: skip


def _fused(case: Case, loss: PolicyLoss, temperature: float, impl: str) -> Outputs:
    out = fused_logprob_loss(case.hidden, case.weight, case.labels, loss, temperature=temperature, impl=impl)
    out.loss.backward()
    return out.logprobs_T, out.entropy_T, *grads(case)


def _naive_shards(case: Case, loss: PolicyLoss, temperature: float) -> Outputs:
    """The naive form on two vocabulary shards' products: their fp32 sums may round to bf16 unlike the whole one's."""
    logits = torch.cat([F.linear(case.hidden, rows) for rows in case.weight.chunk(2)], 1)
    logp = torch.log_softmax(logits.float() / temperature, -1)
    logprobs, entropy = logp.gather(1, case.labels[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)
    loss.plain(logprobs, entropy).backward()
    return logprobs.detach(), entropy.detach(), *grads(case)


def _recomputed(case: Case, loss: PolicyLoss, temperature: float, impl: str) -> Outputs:
    out = token_logprobs(case.hidden, case.weight, case.labels, temperature=temperature, impl=impl)
    loss.plain(out.logprobs_T, out.entropy_T).backward()
    return out.logprobs_T.detach(), out.entropy_T.detach(), *grads(case)


def _exact(exact: Case, loss: PolicyLoss, temperature: float) -> Outputs:
    logprobs, entropy = define(exact, temperature)
    loss.plain(logprobs, entropy).backward()
    return logprobs.detach(), entropy.detach(), *grads(exact)


class _Squares:
    """Sums of squared errors of both gradients, ours and naive, over cases."""

    def __init__(self) -> None:
        self.ours, self.naive = [0.0, 0.0], [0.0, 0.0]

    def add(self, ours: Outputs, naive: Outputs, exact: Outputs) -> None:
        for i in range(2):
            true = exact[2 + i]
            size = true.square().mean().clamp(min=1e-30)  # every case weighs the same
            self.ours[i] += float((ours[2 + i].double() - true).square().mean() / size)
            self.naive[i] += float((naive[2 + i].double() - true).square().mean() / size)

    def check(self) -> None:
        for name, ours, naive in zip(("hidden", "weight"), self.ours, self.naive, strict=True):
            assert (ours / naive) ** 0.5 <= 1.0 + 5e-4, f"gradient of {name}: {ours} against the naive form's {naive}"


def _check_values(case: Case, ours: Outputs, naive: Outputs, exact: Outputs, temperature: float) -> None:
    """1.0 x the naive form's largest error, up to 8 roundings of an fp32 number of the largest logit's size."""
    assert (ours[0] <= 0).all()
    largest = (case.hidden.detach().double() @ case.weight.detach().double().t()).abs().max() / temperature
    slack = 8 * 2.0**-24 * float(largest.clamp(min=16.0))
    for name, mine, theirs, true in zip(("log-prob", "entropy"), ours, naive, exact, strict=False):
        assert mine.dtype == torch.float32
        error, bound = (float((x.double() - true).abs().max()) for x in (mine, theirs))
        assert error <= bound + slack, f"{name}: {error} against the naive form's {bound}"


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("form", [_fused, _recomputed])
@pytest.mark.parametrize("kind", KINDS)
def test_sweep(impl: str, form: object, kind: str) -> None:
    squares = _Squares()
    for seed in range(6 if impl == "torch" else 1):
        for num_tokens, vocab_size in ((1, 1000), (7, 1000), (7, 1536)):
            for temperature in TEMPERATURES:
                case = _case(kind, num_tokens, vocab_size, seed)
                exact = in_float64(case)
                loss = _loss(case, exact, temperature)
                ours, naive = form(case, loss, temperature, impl), form(case, loss, temperature, "naive")
                answer = _exact(exact, loss, temperature)
                _check_values(case, ours, naive, answer, temperature)
                squares.add(ours, naive, answer)
    if impl == "torch":  # a handful of cases is no statistic
        squares.check()


@pytest.mark.parametrize(
    ("impl", "num_tokens", "vocab_size"),
    [("torch", 513, 1536), ("torch", 1, 151936), *((impl, 7, 19008) for impl in IMPLS)],
)
@pytest.mark.parametrize("kind", ["normal", "negative"])
def test_sizes(kind: str, impl: str, num_tokens: int, vocab_size: int) -> None:
    case = _case(kind, num_tokens, vocab_size, 0)
    exact = in_float64(case)
    loss = _loss(case, exact, 1.0)
    answer = _exact(exact, loss, 1.0)
    _check_values(case, _fused(case, loss, 1.0, impl), _fused(case, loss, 1.0, "naive"), answer, 1.0)


def test_tiles_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, row blocks and gradient chunks; the weight's gradient is then summed up in fp32."""
    monkeypatch.setattr(logprob_cpu, "TILE_ELEMENTS", 64 * 600)
    monkeypatch.setattr(logprob_cpu, "BLOCK_ELEMENTS", 4096)
    monkeypatch.setattr(logprob_cpu, "MAX_ROWS", 64)
    case = _case("normal", 150, 1536, 0)
    exact = in_float64(case)
    loss = _loss(case, exact, 0.3)
    answer, naive = _exact(exact, loss, 0.3), _fused(case, loss, 0.3, "naive")
    for form in (_fused, _recomputed):
        _check_values(case, form(case, loss, 0.3, "torch"), naive, answer, 0.3)
    with torch.no_grad():
        out = token_logprobs(case.hidden, case.weight, case.labels, temperature=0.3, impl="torch")
    _check_values(case, (out.logprobs_T, out.entropy_T, *naive[2:]), naive, answer, 0.3)


def _shard(kind: str, temperature: float, impl: str) -> list[Outputs]:
    """A rank's rows: log-probs, entropies and gradients, for a few seeds."""
    for module in (head_cases, sys.modules[__name__]):  # a forked process cannot start CUDA, and the backend is gloo
        module.DEVICE = torch.device("cpu")
    rank, found = dist.get_rank(), []
    for seed in range(3):
        case = _case(kind, 7, 1000, seed)
        loss = _loss(case, in_float64(case), temperature)
        hidden = case.hidden.detach().requires_grad_()
        rows = case.weight.detach().chunk(2)[rank].clone().requires_grad_()
        out = fused_logprob_loss(
            hidden, rows, case.labels, loss, temperature=temperature, group=dist.group.WORLD, impl=impl
        )
        out.loss.backward()
        found.append((out.logprobs_T, out.entropy_T, hidden.grad, rows.grad))
    return found


@pytest.mark.parametrize(("kind", "temperature", "impl"), [("negative", 0.3, "torch"), ("normal", 2.0, "torch"),
                                                           ("peaked", 1.0, "triton")])  # fmt: skip
def test_two_shards(kind: str, temperature: float, impl: str) -> None:
    if impl == "triton" and (pytest.importorskip("triton") and torch.cuda.is_available()):
        pytest.skip("two ranks share no GPU here; the interpreter's run on CPU covers this")
    ranks = run_ranks(_shard, 2, kind, temperature, impl)
    for seed, (first, second) in enumerate(zip(*ranks, strict=True)):
        case = _case(kind, 7, 1000, seed)
        exact = in_float64(case)
        loss = _loss(case, exact, temperature)
        answer, naive = _exact(exact, loss, temperature), _naive_shards(case, loss, temperature)
        ours = (first[0].to(DEVICE), first[1].to(DEVICE), first[2], torch.cat([first[3], second[3]]))
        _check_values(case, ours, naive, answer, temperature)
        # Each shard's part of the hidden gradient is rounded to bf16 before the sum: one more rounding.
        for mine, theirs, true, roundings in zip(ours[2:], naive[2:], answer[2:], (1, 0), strict=True):
            error, bound = (float((x.to(DEVICE).double() - true).norm()) for x in (mine, theirs))
            assert error <= bound * (1.0 + 5e-4) + roundings * 2.0**-8 * float(true.norm())
