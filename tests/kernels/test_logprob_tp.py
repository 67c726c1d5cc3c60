"""The head over two vocabulary shards equals the head over the whole vocabulary."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from prime_megatron.algo.losses import PolicyLoss, PrmLoss
from prime_megatron.kernels.logprob import fused_logprob_loss, token_logprobs
from prime_megatron.kernels.vocab_parallel import Shard
from tests.support.ranks import run_ranks

TOKENS, WIDTH, ROWS = 10, 16, 600
EDGES = (0, 4, 10)


def _inputs(vocab_size: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(vocab_size)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw) / 2
    weight = torch.randn(2 * ROWS, WIDTH, generator=draw)
    labels = torch.randint(vocab_size, (TOKENS,), generator=draw)
    labels[3] = -100
    return hidden, weight, labels, torch.randn(4, TOKENS, generator=draw)


def _losses(noise: torch.Tensor) -> dict[str, Any]:
    weights = torch.ones(TOKENS)
    weights[3] = 0
    ref = noise[2] - 7
    policy = PolicyLoss(noise[0], weights, noise[1] * 0.1 - 7, entropy_coef=0.2, kl_coef=0.1, ref_logprobs_T=ref)
    return {"policy": policy, "prm": PrmLoss(ref, weights > 0, EDGES, torch.tensor([1.0, 0.3]), 0.5)}


def _run(
    vocab_size: int, impl: str, dtype: torch.dtype, group: dist.ProcessGroup | None, rank: int, size: int, sp: bool
) -> dict[str, torch.Tensor]:
    """Every form of the head on one shard; gradients of this rank's hidden states and rows."""
    hidden, weight, labels, noise = _inputs(vocab_size)
    own = slice(rank * TOKENS // size, (rank + 1) * TOKENS // size) if sp else slice(None)
    hidden = hidden[own].to(dtype).requires_grad_()
    weight = weight.chunk(size)[rank].to(dtype).clone().requires_grad_()
    call: dict[str, Any] = {"group": group, "vocab_size": vocab_size, "sequence_parallel": sp, "impl": impl}
    out = token_logprobs(hidden, weight, labels, temperature=0.8, **call)
    ((out.logprobs_T * noise[0]).sum() + (out.entropy_T * noise[3]).sum()).backward()
    found = {"logprobs": out.logprobs_T.detach(), "entropy": out.entropy_T.detach()}
    found |= {"dhidden": hidden.grad.clone(), "dweight": weight.grad.clone()}
    for name, loss in _losses(noise).items():
        hidden.grad = weight.grad = None
        result = fused_logprob_loss(hidden, weight, labels, loss, **call)
        (3.0 * result.loss).backward()
        found |= {f"{name}_loss": result.loss.detach(), f"{name}_dhidden": hidden.grad.clone()}
        found |= {f"{name}_dweight": weight.grad.clone()}
    return found


def _rank(vocab_size: int, impl: str, dtype: torch.dtype, sp: bool) -> dict[str, torch.Tensor]:
    return _run(vocab_size, impl, dtype, dist.group.WORLD, dist.get_rank(), dist.get_world_size(), sp)


@pytest.mark.parametrize(
    ("vocab_size", "impl", "dtype", "sp"),
    [
        (1200, "torch", torch.float32, False),
        (1111, "torch", torch.float32, True),  # the second shard ends in padding
        (555, "torch", torch.float32, False),  # and here it is nothing else
        (1111, "torch", torch.bfloat16, True),
        (1111, "triton", torch.float32, True),
        (555, "triton", torch.float32, False),
    ],
)
def test_two_shards_equal_one(vocab_size: int, impl: str, dtype: torch.dtype, sp: bool) -> None:
    if impl == "triton" and (pytest.importorskip("triton") and torch.cuda.is_available()):
        pytest.skip("two ranks share no GPU here; the interpreter's run on CPU covers this")
    whole = _run(vocab_size, impl, dtype, None, 0, 1, False)
    ranks = run_ranks(_rank, 2, vocab_size, impl, dtype, sp)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 5e-2}
    for name, value in whole.items():
        if name.endswith("dweight") or (name.endswith("dhidden") and sp):
            both = torch.cat([rank[name] for rank in ranks])
        else:
            both = ranks[0][name]
            assert torch.equal(both, ranks[1][name]), f"{name} differs between ranks"
        torch.testing.assert_close(both, value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_shards_of_a_padded_vocabulary() -> None:
    assert Shard.of(8, None, None) == Shard(0, 8)
    assert Shard.of(8, 5, None) == Shard(0, 5)
    local = Shard(8, 3).local_labels(torch.tensor([7, 8, 10, 11, -100]))
    assert local.tolist() == [-1, 0, 2, -1, -1]
