"""Token log-probabilities and entropies against float64, by every implementation."""

import pytest
import torch
from head_cases import DEVICE, IMPLS, Case, define, error, grads, in_float64, make_case
from torch.utils._python_dispatch import TorchDispatchMode

from prime_megatron.kernels import logprob_cpu
from prime_megatron.kernels.logprob import token_logprobs

FP32_ERROR = 1e-5
SIZES = [(1, 1000), (7, 1000), (7, 1536), (513, 1536), (7, 19008), (1, 151936), (7, 151936)]
KINDS = ["normal", "flat", "peaked", "negative", "positive"]


def _probe(case: Case, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, len(case.labels), generator=draw).to(DEVICE))


def _backward(outputs: tuple[torch.Tensor, torch.Tensor], probe: tuple[torch.Tensor, torch.Tensor]) -> None:
    sum((x * p.to(x.dtype)).sum() for x, p in zip(outputs, probe, strict=True)).backward()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("num_tokens", "vocab_size"), SIZES)
def test_values_and_gradients_match_float64(impl: str, num_tokens: int, vocab_size: int) -> None:
    case = make_case(num_tokens, vocab_size)
    exact, probe = in_float64(case), _probe(case)
    ours = token_logprobs(case.hidden, case.weight, case.labels, impl=impl)
    answer = define(exact)
    assert ours.logprobs_T.dtype == ours.entropy_T.dtype == torch.float32
    assert error(ours.logprobs_T, answer[0]) < FP32_ERROR
    assert error(ours.entropy_T, answer[1]) < FP32_ERROR
    _backward((ours.logprobs_T, ours.entropy_T), probe)
    _backward(answer, probe)
    for mine, true in zip(grads(case), grads(exact), strict=True):
        assert error(mine, true) < FP32_ERROR


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits(impl: str, kind: str) -> None:
    case = make_case(7, 1000, kind)
    exact, probe = in_float64(case), _probe(case)
    ours, answer = token_logprobs(case.hidden, case.weight, case.labels, impl=impl), define(exact)
    # An fp32 logit near 120 is itself only good to 120 * 2**-24, eight times an ordinary one.
    bound = 8 * FP32_ERROR if kind in ("negative", "positive", "peaked") else FP32_ERROR
    assert error(ours.logprobs_T, answer[0]) < bound
    assert error(ours.entropy_T, answer[1]) < bound
    assert (ours.logprobs_T <= 0).all()
    _backward((ours.logprobs_T, ours.entropy_T), probe)
    _backward(answer, probe)
    # A row of the gradient sums to 0; times a weight of 120 its fp32 rounding is 120 times as large.
    largest = float(case.weight.detach().abs().max().clamp(min=8))
    for mine, true in zip(grads(case), grads(exact), strict=True):
        assert error(mine, true) < largest / 8 * bound


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_of_different_extremes_share_a_tile(impl: str) -> None:
    """Rows whose plain sum of powers overflows, underflows and is fine, side by side."""
    case = make_case(9, 1000)
    shift = torch.tensor([0.0, -500.0, 500.0], device=DEVICE).repeat(3)
    with torch.no_grad():
        case.hidden[:, 0], case.weight[:, 0] = shift / 100, 100.0
    ours, answer = token_logprobs(case.hidden, case.weight, case.labels, impl=impl), define(in_float64(case))
    assert error(ours.logprobs_T, answer[0].detach()) < 500 / 16 * FP32_ERROR
    assert error(ours.entropy_T, answer[1].detach()) < 500 / 16 * FP32_ERROR


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_temperature_divides_the_logits(impl: str, temperature: float) -> None:
    case = make_case(7, 1000)
    exact, probe = in_float64(case), _probe(case)
    ours = token_logprobs(case.hidden, case.weight, case.labels, temperature=temperature, impl=impl)
    answer = define(exact, temperature)
    assert error(ours.logprobs_T, answer[0]) < FP32_ERROR
    assert error(ours.entropy_T, answer[1]) < FP32_ERROR
    _backward((ours.logprobs_T, ours.entropy_T), probe)
    _backward(answer, probe)
    for mine, true in zip(grads(case), grads(exact), strict=True):
        assert error(mine, true) < FP32_ERROR


@pytest.mark.parametrize("impl", [*IMPLS, "naive"])
def test_ignored_tokens_give_zero_and_no_gradient(impl: str) -> None:
    case = make_case(7, 1000)
    labels, ignore = case.labels.clone(), torch.zeros(7, dtype=torch.bool, device=DEVICE)
    labels[2], ignore[4] = -100, True
    out = token_logprobs(case.hidden, case.weight, labels, ignore_mask=ignore, impl=impl)
    gone = [2, 4]
    assert (out.logprobs_T[gone] == 0).all() and (out.entropy_T[gone] == 0).all()
    _backward((out.logprobs_T, out.entropy_T), _probe(case))
    dhidden, dweight = grads(case)
    assert (dhidden[gone] == 0).all()
    kept = [0, 1, 3, 5, 6]
    exact = in_float64(case)
    logprobs, entropy = define(exact)
    a, b = _probe(case)
    ((logprobs * a)[kept].sum() + (entropy * b)[kept].sum()).backward()
    for mine, true in zip((dhidden, dweight), grads(exact), strict=True):
        assert error(mine, true) < FP32_ERROR


@pytest.mark.parametrize("impl", [*IMPLS, "naive"])
def test_padding_rows_never_count(impl: str) -> None:
    case = make_case(7, 1000, padding=24)
    exact, probe = in_float64(case), _probe(case)
    ours = token_logprobs(case.hidden, case.weight, case.labels, vocab_size=1000, impl=impl)
    answer = define(exact)
    assert error(ours.logprobs_T, answer[0]) < FP32_ERROR
    _backward((ours.logprobs_T, ours.entropy_T), probe)
    _backward(answer, probe)
    dweight = grads(case)[1]
    assert (dweight[1000:] == 0).all()
    assert error(dweight, grads(exact)[1]) < FP32_ERROR


@pytest.mark.parametrize("impl", IMPLS)
def test_scoring_equals_training_and_entropy_is_optional(impl: str) -> None:
    case = make_case(7, 1536)
    trained = token_logprobs(case.hidden, case.weight, case.labels, impl=impl)
    with torch.no_grad():
        scored = token_logprobs(case.hidden, case.weight, case.labels, impl=impl)
        bare = token_logprobs(case.hidden, case.weight, case.labels, entropy=False, impl=impl)
    assert torch.equal(scored.logprobs_T, trained.logprobs_T)
    assert torch.equal(scored.entropy_T, trained.entropy_T)
    assert not scored.logprobs_T.requires_grad and bare.entropy_T is None
    assert torch.equal(bare.logprobs_T, scored.logprobs_T)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    case = make_case(7, 1000)
    getattr(case, frozen).requires_grad_(False)
    token_logprobs(case.hidden, case.weight, case.labels).logprobs_T.sum().backward()
    assert getattr(case, frozen).grad is None
    assert getattr(case, "weight" if frozen == "hidden" else "hidden").grad is not None


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_scoring_never_holds_more_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob_cpu, "TILE_ELEMENTS", 64 * 600)
    monkeypatch.setattr(logprob_cpu, "MAX_ROWS", 64)
    case = make_case(150, 3000)
    with torch.no_grad(), _Largest() as seen:
        tiled = token_logprobs(case.hidden, case.weight, case.labels, impl="torch")
    assert seen.elements <= max(2 * 64 * 600, case.weight.numel())
    assert error(tiled.logprobs_T, define(in_float64(case))[0].detach()) < FP32_ERROR


@pytest.mark.parametrize("impl", IMPLS)
def test_no_tokens(impl: str) -> None:
    case = make_case(0, 1000)
    out = token_logprobs(case.hidden, case.weight, case.labels, impl=impl)
    assert out.logprobs_T.shape == (0,)
    (out.logprobs_T.sum() + out.entropy_T.sum()).backward()
    assert case.hidden.grad.shape == case.hidden.shape
    assert (case.weight.grad == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"labels_T": torch.zeros(6, dtype=torch.long)},
        {"weight_VH": torch.zeros(10, 15)},
        {"weight_VH": torch.zeros(10, 16, dtype=torch.bfloat16)},
        {"temperature": 0.0},
        {"impl": "fast"},
        {"hidden_TH": torch.zeros(7, 16, dtype=torch.float64), "weight_VH": torch.zeros(10, 16, dtype=torch.float64)},
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict) -> None:
    call = {"hidden_TH": torch.zeros(7, 16), "weight_VH": torch.zeros(10, 16), "labels_T": torch.zeros(7).long()}
    call |= {"impl": "torch"}
    with pytest.raises(ValueError):
        token_logprobs(**(call | change))
