"""The gradient-in-forward form against autograd of the definition: losses, chunks, Megatron's main gradient."""

import pytest
import torch
from head_cases import DEVICE, IMPLS, Case, define, error, grads, in_float64, make_case
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.losses import NllLoss, PolicyLoss, PrmLoss
from prime_megatron.algo.objectives import OBJECTIVES
from prime_megatron.kernels import logprob_cpu
from prime_megatron.kernels.logprob import fused_logprob_loss
from prime_megatron.kernels.logprob_chunks import plan_chunks

TOLERANCE = 1e-5


def _policy(case: Case, **changes: object) -> PolicyLoss:
    draw = torch.Generator().manual_seed(3)
    near = define(in_float64(case))[0].detach().float()
    noise = torch.randn(4, len(near), generator=draw).to(DEVICE)
    weights = (noise[3] > -1).float() / len(near)
    return PolicyLoss(
        **{
            "advantages_T": noise[0], "weights_T": weights, "old_logprobs_T": near + 0.3 * noise[1],
            "entropy_coef": 0.1, "kl_coef": 0.2, "ref_logprobs_T": near + 0.3 * noise[2],
        } | changes
    )  # fmt: skip


def _prm(case: Case, edges: tuple[int, ...]) -> PrmLoss:
    draw = torch.Generator().manual_seed(4)
    near = define(in_float64(case))[0].detach().float()
    ref = near + torch.randn(len(near), generator=draw).to(DEVICE)
    mask = (torch.rand(len(near), generator=draw) > 0.3).to(DEVICE)
    return PrmLoss(ref, mask, edges, torch.rand(len(edges) - 1, generator=draw).to(DEVICE), 0.5)


def _exact(case: Case, loss: object, upstream: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, hidden's gradient, weight's gradient) by autograd of the definitions in float64."""
    exact = in_float64(case)
    value = loss.plain(*define(exact))
    (upstream * value).backward()
    return value.detach(), *grads(exact)


@pytest.mark.parametrize("impl", [*IMPLS, "naive"])
@pytest.mark.parametrize("name", ["policy", "prm", "nll"])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_loss_and_gradients(impl: str, name: str, upstream: float) -> None:
    case = make_case(13, 1000)
    loss = {
        "policy": lambda: _policy(case),
        "prm": lambda: _prm(case, (0, 4, 9, 13)),
        "nll": lambda: NllLoss(torch.rand(13, generator=torch.Generator().manual_seed(0)).to(DEVICE)),
    }[name]()
    ours = fused_logprob_loss(case.hidden, case.weight, case.labels, loss, impl=impl)
    (upstream * ours.loss).backward()
    value, *wanted = _exact(case, loss, upstream)
    assert error(ours.loss, value) < TOLERANCE
    for mine, true in zip(grads(case), wanted, strict=True):
        assert error(mine, true) < TOLERANCE
    assert error(ours.logprobs_T, define(in_float64(case))[0]) < TOLERANCE
    assert not ours.logprobs_T.requires_grad
    assert (ours.entropy_T is None) == (name != "policy")


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 5, 100])
def test_chunks_do_not_change_the_result(
    impl: str, dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks cut anywhere (policy) and between sequences (gspo, PRM), the longest of them longer than a chunk."""
    case = make_case(13, 1000, dtype=dtype)
    module = logprob_cpu
    if impl == "triton":
        from prime_megatron.kernels import logprob_triton as module
    bound = TOLERANCE if dtype == torch.float32 else 2e-2
    edges = (0, 2, 4, 4, 11, 13)
    gspo = _policy(case, objective=OBJECTIVES["gspo"], boundaries=edges)
    for loss in (_policy(case), gspo, _prm(case, edges)):
        monkeypatch.setattr(module, "chunk_tokens", lambda *_: tokens)
        ours = fused_logprob_loss(case.hidden, case.weight, case.labels, loss, impl=impl)
        ours.loss.backward()
        value, *wanted = _exact(case, loss, 1.0)
        assert error(ours.loss, value) < bound
        for mine, true in zip(grads(case), wanted, strict=True):
            assert error(mine, true) < bound * max(1.0, float(true.abs().max()))
        assert torch.isfinite(torch.stack(list(ours.stats.values()))).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_statistics_add_up_over_chunks(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(13, 1000)
    whole = fused_logprob_loss(case.hidden, case.weight, case.labels, _policy(case), impl=impl).stats
    module = logprob_cpu
    if impl == "triton":
        from prime_megatron.kernels import logprob_triton as module
    monkeypatch.setattr(module, "chunk_tokens", lambda *_: 4)
    parts = fused_logprob_loss(case.hidden, case.weight, case.labels, _policy(case), impl=impl).stats
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name])
    assert whole["policy_num_tokens"] == (_policy(case).weights_T != 0).sum()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("grad_scale", [None, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_main_grad_is_added_to(impl: str, grad_scale: float | None, dtype: torch.dtype) -> None:
    """Two micro-batches into one main_grad of a padded shard, as DDP's hook leaves it."""
    cases = [make_case(7, 1000, dtype=dtype, padding=8, seed=0), make_case(9, 1000, dtype=dtype, padding=8, seed=1)]
    weight = cases[0].weight
    weight.main_grad = torch.full(weight.shape, 3.0, device=DEVICE)
    wanted = 3.0
    for case in cases:
        case = Case(case.hidden, weight, case.labels, case.vocab_size)
        weight.grad_added_to_main_grad = False
        loss = _policy(case)
        out = fused_logprob_loss(
            case.hidden, weight, case.labels, loss, vocab_size=1000, grad_scale=grad_scale, impl=impl
        )
        (0.5 * out.loss).backward()
        wanted = wanted + _exact(case, loss, 0.5)[2]
        assert weight.grad_added_to_main_grad
        weight.grad = None  # as DDP's hook does
    bound = TOLERANCE if dtype == torch.float32 else 2e-3
    assert error(weight.main_grad, wanted) < bound
    assert (weight.main_grad[1000:] == 3.0).all()


def test_the_recompute_form_adds_to_main_grad_too() -> None:
    from prime_megatron.kernels.logprob import token_logprobs

    case = make_case(7, 1000)
    case.weight.main_grad = torch.ones_like(case.weight)
    case.weight.grad_added_to_main_grad = False
    token_logprobs(case.hidden, case.weight, case.labels).logprobs_T.sum().backward()
    exact = in_float64(case)
    define(exact)[0].sum().backward()
    assert error(case.weight.main_grad, 1 + exact.weight.grad) < TOLERANCE
    assert case.weight.grad_added_to_main_grad


def test_a_weight_tied_to_the_embedding_keeps_both_gradients() -> None:
    """zero_out_wgrad: DDP's hook adds param.grad besides main_grad, so the head's part of it must be zero."""
    case = make_case(7, 1000)
    case.weight.main_grad = torch.zeros_like(case.weight)
    case.weight.grad_added_to_main_grad, case.weight.zero_out_wgrad = False, True
    embedded = case.weight[case.labels].sum()
    loss = NllLoss(torch.ones(7, device=DEVICE))
    (fused_logprob_loss(case.hidden, case.weight, case.labels, loss).loss + embedded).backward()
    counts = torch.bincount(case.labels, minlength=1000)[:, None]
    torch.testing.assert_close(case.weight.grad, counts.expand_as(case.weight).float())
    assert error(case.weight.main_grad, _exact(case, loss, 1.0)[2]) < TOLERANCE


def test_a_broken_promise_of_grad_scale_is_caught() -> None:
    if DEVICE.type == "cuda":
        pytest.skip("a device-side assertion ends the process's CUDA context")
    case = make_case(7, 1000)
    case.weight.main_grad = torch.zeros_like(case.weight)
    out = fused_logprob_loss(case.hidden, case.weight, case.labels, _policy(case), grad_scale=0.5)
    with pytest.raises(RuntimeError, match="grad_scale"):
        out.loss.backward()


def test_grad_scale_needs_main_grad() -> None:
    case = make_case(7, 1000)
    with pytest.raises(ValueError, match="main_grad"):
        fused_logprob_loss(case.hidden, case.weight, case.labels, _policy(case), grad_scale=1.0)


@pytest.mark.parametrize("impl", IMPLS)
def test_nothing_is_differentiated_under_no_grad(impl: str) -> None:
    case = make_case(7, 1000)
    case.weight.main_grad = torch.zeros_like(case.weight)
    with torch.no_grad():
        out = fused_logprob_loss(case.hidden, case.weight, case.labels, _policy(case), grad_scale=1.0, impl=impl)
    assert not out.loss.requires_grad
    assert (case.weight.main_grad == 0).all()
    assert error(out.loss, _exact(case, _policy(case), 1.0)[0]) < TOLERANCE


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 20))
def test_chunks_cover_tokens_once_and_never_cut_a_sequence(lengths: list[int], limit: int) -> None:
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    ranges = plan_chunks(edges[-1], limit, tuple(edges))
    assert [t for a, b in ranges for t in range(a, b)] == list(range(edges[-1]))
    for a, b in ranges:
        assert a in edges and b in edges
        assert b - a <= limit or not any(a < edge < b for edge in edges)
    plain = plan_chunks(edges[-1], limit, None)
    assert [t for a, b in plain for t in range(a, b)] == list(range(edges[-1]))
    sizes = [b - a for a, b in plain]
    assert not sizes or (max(sizes) <= limit and max(sizes) - min(sizes) <= 1)


@pytest.mark.parametrize("impl", ["torch", "naive"])
@pytest.mark.parametrize("kind", ["nll", "policy", "prm"])
def test_no_tokens_are_a_loss_of_zero_with_all_its_statistics(kind: str, impl: str) -> None:
    """A data-parallel rank that has no prompt of a mini-batch takes part with nothing in its hands."""
    none = torch.zeros(0)
    makers = {
        "nll": lambda n: NllLoss(torch.ones(n)),
        "policy": lambda n: PolicyLoss(torch.ones(n), torch.ones(n), torch.zeros(n), entropy_coef=0.1),
        "prm": lambda n: PrmLoss(torch.zeros(n), torch.ones(n, dtype=torch.bool), (0, n) if n else (0,),
                                 torch.ones(1)[: min(n, 1)], 0.5, weights_N=torch.ones(1)[: min(n, 1)]),
    }  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 4, generator=draw))
    some = fused_logprob_loss(
        torch.randn(3, 4, generator=draw), weight, torch.tensor([1, 2, 3]), makers[kind](3), impl=impl
    )
    hidden = torch.zeros(0, 4, requires_grad=True)
    result = fused_logprob_loss(hidden, weight, torch.zeros(0, dtype=torch.int64), makers[kind](0), impl=impl)
    assert result.stats.keys() == some.stats.keys() and all(float(value) == 0.0 for value in result.stats.values())
    result.loss.backward()
    assert result.loss == 0.0 and hidden.grad.shape == (0, 4) and not weight.grad.any()
    assert result.logprobs_T.shape == none.shape
