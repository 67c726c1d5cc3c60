"""The fused reward path against the papers' formulas in numpy; tests/unit/test_step_advantages.py has algo's form."""

import importlib.util
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.kernels import reward_torch
from prime_megatron.kernels.reward import process_advantages
from prime_megatron.kernels.reward_form import RewardBatch, RewardForm
from prime_megatron.types import Advantages

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMPLS = ["torch"] + (["triton"] if importlib.util.find_spec("triton") else [])
FORM = RewardForm(
    scale=0.05, ratio_floor=0.0, batch_norm=True, baseline="code", process_weight=1.5, outcome_weight=0.5,
    gamma_process=1.0, gamma_outcome=1.0, whiten=True,
)  # fmt: skip
FORMS = {
    "original": replace(FORM, scale=1.0),
    "paper": replace(FORM, baseline="paper", batch_norm=False, whiten=False),
    "discounted": replace(FORM, gamma_process=0.9, gamma_outcome=0.97),
    "one discount": replace(FORM, gamma_process=0.0, gamma_outcome=0.0, baseline="paper"),
    "raw": replace(FORM, batch_norm=False, whiten=False),
    "grpo": replace(FORM, baseline="z_score", whiten=False),
    "dr.grpo": replace(FORM, baseline="mean", batch_norm=False, whiten=False, gamma_process=0.5),
    "floored": replace(FORM, ratio_floor=0.05),
    "local": replace(FORM, ratio_floor=0.05, batch_norm=False, gamma_process=0.0, baseline="paper"),
}


def make_batch(lengths: list[int], groups: list[int], seed: int = 0, tail: bool = False) -> RewardBatch:
    """tail: the response is a contiguous tail of the sequence, else any subset of it."""
    draw = torch.Generator().manual_seed(seed)
    edges = torch.tensor([0, *lengths]).cumsum(0)
    total = int(edges[-1])
    mask = torch.rand(total, generator=draw) < 0.7
    if tail:
        mask = torch.cat([torch.arange(n) >= n // 3 for n in lengths])
    values = torch.randn(2, total, generator=draw) - 2
    outcome = torch.randint(5, (len(lengths),), generator=draw) / 4
    return moved(RewardBatch(values[0], values[1], mask, edges, torch.tensor(groups), outcome), DEVICE)


def moved(batch: RewardBatch, where: torch.device) -> RewardBatch:
    return RewardBatch(*(value.to(where) for value in vars(batch).values()))


BATCH = make_batch([5, 1, 9, 40, 33, 17, 70, 12], [0, 7, 0, 7, 3, 0, 7, 0])


def define(batch: RewardBatch, form: RewardForm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Straight from the formulas, in float64: sums over explicit sets, powers of gamma written out."""
    prm, ref, mask, edges, group, outcome = (x.cpu().double().numpy() for x in vars(batch).values())
    spans = [np.arange(int(a), int(b)) for a, b in pairwise(edges)]
    valid = [[t for t in span if mask[t]] for span in spans]
    floor = form.ratio_floor
    r = np.where(mask > 0, form.scale * np.log((np.exp(prm) + floor) / (np.exp(ref) + floor)), 0)
    if form.batch_norm:
        r = r / (max([abs(r[v[k:]].sum()) for v in valid for k in range(len(v))], default=0.0) + 1e-6)
    m = np.array([r[v].mean() if v else 0.0 for v in valid])
    returns = np.zeros_like(r)
    for i, tokens in enumerate(valid):
        others = [j for j in range(len(valid)) if group[j] == group[i] and j != i]
        k = len(others) + 1
        if k == 1:
            centred, final = r, outcome[i]
        elif form.baseline in ("z_score", "mean"):
            family = [*others, i]
            scale = [1.0, 1.0]
            if form.baseline == "z_score":
                scale = [x[family].std(ddof=1) + 1e-6 for x in (m, outcome)]
            centred = (r - m[family].mean()) / scale[0]
            final = (outcome[i] - outcome[family].mean()) / scale[1]
        elif form.baseline == "paper":
            centred, final = r - m[others].mean(), outcome[i] - outcome[others].mean()
        else:
            centred, final = k / (k - 1) * r - (m[others].sum() + m[i]) / (k - 1), outcome[i] - outcome[others].mean()
        for t in tokens:
            later = np.array([s for s in tokens if s >= t])
            returns[t] = form.process_weight * (form.gamma_process ** (later - t) * centred[later]).sum()
            returns[t] += form.outcome_weight * form.gamma_outcome ** float(tokens[-1] - t) * final
    if not form.whiten:
        return r, returns, returns
    kept = returns[mask > 0]
    return r, returns, np.where(mask > 0, (returns - kept.mean()) / np.sqrt(kept.var(ddof=1) + 1e-8), 0)


def close(ours: Advantages, wanted: tuple[np.ndarray, ...], tolerance: float = 1e-5) -> None:
    for mine, true in zip(vars(ours).values(), wanted, strict=True):
        assert mine.dtype == torch.float32
        np.testing.assert_allclose(mine.cpu().numpy(), true, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", FORMS)
def test_formulas(impl: str, name: str) -> None:
    close(process_advantages(BATCH, FORMS[name], impl=impl), define(BATCH, FORMS[name]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["original", "discounted"])
def test_sequences_longer_than_a_block(impl: str, name: str) -> None:
    batch = make_batch([2500, 30, 1024, 1025], [0, 1, 0, 1], tail=True)
    close(process_advantages(batch, FORMS[name], impl=impl), define(batch, FORMS[name]), 1e-4)


@pytest.mark.parametrize("tokens", [1, 16, 50])
@pytest.mark.parametrize("name", ["original", "paper", "raw"])
def test_blocks_of_sequences_do_not_change_the_result(tokens: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one sequence and of several, sequences longer than a block, siblings in different ones, empty ones."""
    monkeypatch.setattr(reward_torch, "BLOCK_TOKENS", tokens)
    for batch in (BATCH, make_batch([0, 5, 40, 0, 9, 3, 0], [1, 0, 0, 1, 1, 0, 1])):
        close(process_advantages(batch, FORMS[name], impl="torch"), define(batch, FORMS[name]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), min_size=1, max_size=7),
    st.sampled_from(sorted(FORMS)),
    st.integers(0, 1000),
)
def test_any_packing(sequences: list[tuple[int, int]], name: str, seed: int) -> None:
    batch = make_batch([n for n, _ in sequences], [g for _, g in sequences], seed)
    if int(batch.response_mask_T.sum()) < 2:
        return  # a deviation of one token is not defined
    close(process_advantages(batch, FORMS[name], impl="torch"), define(batch, FORMS[name]), 1e-4)


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_response_and_a_group_of_one(impl: str) -> None:
    batch = make_batch([4, 6, 5], [0, 0, 1])
    batch.response_mask_T[:4] = False
    batch.response_mask_T[4:] = True
    result = process_advantages(batch, FORMS["raw"], impl=impl)
    close(result, define(batch, FORMS["raw"]))
    q = 0.05 * (batch.prm_logprobs_T - batch.ref_logprobs_T)[10:].double()
    alone = 1.5 * q.flip(0).cumsum(0).flip(0) + 0.5 * batch.outcome_N[2]
    torch.testing.assert_close(result.returns_T[10:], alone.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_siblings_of_one_outcome_are_no_better_than_their_mean(impl: str) -> None:
    """A deviation of 0 magnifies nothing: 0.7, 0.7, 0.7 has the mean 0.7 to the last bit."""
    batch = make_batch([4, 6, 5], [0, 0, 0])
    batch.outcome_N[:] = 0.7
    form = replace(FORMS["grpo"], process_weight=0.0)
    assert process_advantages(batch, form, impl=impl).advantages_T.abs().max() <= 1e-6


@pytest.mark.parametrize("impl", IMPLS)
def test_what_lies_outside_the_response_never_counts(impl: str) -> None:
    clean = make_batch([5, 9, 12], [0, 0, 1])
    junk = torch.where(clean.response_mask_T, clean.prm_logprobs_T, torch.nan)
    for mine, true in zip(
        vars(process_advantages(replace(clean, prm_logprobs_T=junk), FORM, impl=impl)).values(),
        vars(process_advantages(clean, FORM, impl=impl)).values(),
        strict=True,
    ):
        assert torch.equal(mine, true)


class _TwoRanks:
    """Reductions of one rank whose peer's contributions are known."""

    def __init__(self, peer: dict[str, torch.Tensor]) -> None:
        self.peer, self.seen = peer, {}

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        self.seen["max"] = tensor.clone()
        return torch.maximum(tensor, self.peer["max"]) if "max" in self.peer else tensor

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.seen["sum"] = tensor.clone()
        return tensor + self.peer["sum"] if "sum" in self.peer else tensor


@pytest.mark.parametrize("impl", IMPLS)
def test_ranks_share_maximum_and_moments(impl: str) -> None:
    """Two halves that know each other's reductions give the whole batch's numbers."""
    lengths, groups = [5, 9, 40, 33, 17, 12], [0, 0, 0, 1, 1, 1]
    whole = make_batch(lengths, groups)
    cut = int(whole.cu_seqlens[3])
    halves = [
        RewardBatch(*(x[:cut] for x in list(vars(whole).values())[:3]), whole.cu_seqlens[:4], whole.group_N[:3],
                    whole.outcome_N[:3]),
        RewardBatch(*(x[cut:] for x in list(vars(whole).values())[:3]), whole.cu_seqlens[3:] - cut, whole.group_N[3:],
                    whole.outcome_N[3:]),
    ]  # fmt: skip
    peers: list[dict[str, torch.Tensor]] = [{}, {}]
    for _ in range(2):  # the first round learns the maxima, the second the moments
        seen = []
        for half, peer in zip(halves, peers, strict=True):
            reduce = _TwoRanks(peer)
            process_advantages(half, FORM, reduce=reduce, impl=impl)
            seen.append(reduce.seen)
        peers = [seen[1], seen[0]]
    results = [
        process_advantages(half, FORM, reduce=_TwoRanks(peer), impl=impl)
        for half, peer in zip(halves, peers, strict=True)
    ]
    joined = Advantages(*(torch.cat(pair) for pair in zip(*(vars(r).values() for r in results), strict=True)))
    close(joined, define(whole, FORM))


@pytest.mark.parametrize("impl", IMPLS)
def test_an_empty_rank_joins_in(impl: str) -> None:
    empty = make_batch([], [])
    result = process_advantages(empty, FORM, reduce=_TwoRanks({"max": torch.ones((), device=DEVICE)}), impl=impl)
    assert result.advantages_T.shape == (0,)


def test_code_and_paper_forms_agree_in_the_mean_of_a_sequence() -> None:
    code, paper = (
        process_advantages(BATCH, replace(FORMS["raw"], baseline=form, outcome_weight=0.0)).returns_T
        for form in ("code", "paper")
    )
    first = BATCH.cu_seqlens[:-1]
    starts = [int(a) for a, b in zip(first, BATCH.cu_seqlens[1:], strict=True) if BATCH.response_mask_T[a:b].any()]
    at = [int(s + BATCH.response_mask_T[s:].int().argmax()) for s in starts]
    torch.testing.assert_close(code[at], paper[at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change", [{"baseline": "both"}, {"gamma_process": 1.5}, {"gamma_outcome": -0.1}, {"ratio_floor": 1.0}]
)
def test_forms_that_do_not_exist_are_refused(change: dict) -> None:
    with pytest.raises(ValueError):
        replace(FORM, **change)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="cu_seqlens"):
        process_advantages(replace(BATCH, group_N=BATCH.group_N[:-1]), FORM)
    with pytest.raises(ValueError, match="one length"):
        process_advantages(replace(BATCH, ref_logprobs_T=BATCH.ref_logprobs_T[:-1]), FORM)
    with pytest.raises(ValueError, match="impl"):
        process_advantages(BATCH, FORM, impl="fast")
