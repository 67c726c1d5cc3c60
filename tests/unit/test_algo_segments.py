import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.algo.segments import (
    Siblings,
    discounted_sum,
    last_index,
    last_mask,
    next_in_sequence,
    segment_count,
    segment_mean,
    segment_sum,
)

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def _layout(sizes: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    cu = torch.tensor([0, *np.cumsum(sizes).tolist()])
    values = np.random.default_rng(seed).normal(size=sum(sizes))
    return cu, torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), values


@settings(deadline=None)
@given(lengths, st.integers(0, 1000), st.floats(0.0, 1.0))
def test_discounted_sum_is_the_double_loop(sizes: list[int], seed: int, gamma: float) -> None:
    cu, sequence_T, values = _layout(sizes, seed)
    got = discounted_sum(torch.tensor(values), sequence_T, gamma)
    for begin, end in zip(cu[:-1].tolist(), cu[1:].tolist()):
        running = 0.0
        for t in range(end - 1, begin - 1, -1):
            running = values[t] + gamma * running
            assert abs(float(got[t]) - running) < 1e-9


@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.5, 0.999, 1.0])
def test_discounted_sum_is_safe_on_long_sequences(gamma: float) -> None:
    # gamma^t underflows and its inverse overflows over 20,000 tokens; a cumsum(values / gamma^t) form would give nan.
    values = torch.ones(20_000)
    got = discounted_sum(values, torch.zeros(20_000, dtype=torch.int64), gamma)
    expected = 20_000.0 if gamma == 1.0 else (1.0 - gamma**20_000) / (1.0 - gamma)
    assert float(got[0]) == pytest.approx(expected, rel=1e-6)
    assert float(got[-1]) == 1.0


def test_discounted_sum_does_not_depend_on_the_neighbours() -> None:
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    alone = discounted_sum(values[100:200], torch.zeros(100, dtype=torch.int64), 0.97)
    packed = discounted_sum(values, torch.arange(300) // 100, 0.97)
    assert torch.equal(packed[100:200], alone)


@settings(deadline=None)
@given(lengths, st.integers(0, 1000))
def test_segment_sums_and_means(sizes: list[int], seed: int) -> None:
    cu, sequence_T, values = _layout(sizes, seed)
    mask = np.random.default_rng(seed + 1).random(len(values)) < 0.5
    sums = segment_sum(torch.tensor(values), sequence_T, len(sizes))
    means = segment_mean(torch.tensor(values), torch.tensor(mask), sequence_T, len(sizes))
    counts = segment_count(torch.tensor(mask), sequence_T, len(sizes))
    last = last_index(torch.tensor(mask), sequence_T, len(sizes))
    marked = last_mask(torch.tensor(mask), sequence_T, len(sizes))
    for i, (begin, end) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist())):
        kept = [values[t] for t in range(begin, end) if mask[t]]
        assert float(sums[i]) == pytest.approx(sum(values[begin:end]), abs=1e-9)
        assert int(counts[i]) == len(kept)
        assert float(means[i]) == pytest.approx(sum(kept) / len(kept) if kept else 0.0, abs=1e-9)
        expected = max((t for t in range(begin, end) if mask[t]), default=-1)
        assert int(last[i]) == expected
        assert marked[begin:end].nonzero().flatten().tolist() == ([expected - begin] if kept else [])


def test_segment_sum_is_differentiable() -> None:
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 0, 1, 1, 1, 3])
    assert torch.autograd.gradcheck(lambda x: segment_sum(x, index, 4), (values,))


def test_next_in_sequence_stops_at_the_boundary() -> None:
    got = next_in_sequence(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([0, 0, 0, 1, 1]))
    assert got.tolist() == [2.0, 3.0, 0.0, 5.0, 0.0]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 100))
def test_siblings_of_any_order_and_size(group: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=len(group))
    siblings = Siblings.of(torch.tensor(group))
    table = siblings.table(torch.tensor(values))
    others = siblings.mean_of_others(torch.tensor(values))
    for g in range(max(group) + 1):
        expected = [values[i] for i in range(len(group)) if group[i] == g]
        assert table[g][siblings.present_GK[g]].tolist() == expected
    for i in range(len(group)):
        rest = [values[j] for j in range(len(group)) if group[j] == group[i] and j != i]
        assert float(others[i]) == pytest.approx(sum(rest) / len(rest) if rest else 0.0, abs=1e-9)
        assert int(siblings.size_N[i]) == len(rest) + 1


def test_empty_inputs() -> None:
    nothing, index = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert discounted_sum(nothing, index, 0.5).shape == (0,)
    assert next_in_sequence(nothing, index).shape == (0,)
    assert segment_sum(nothing, index, 0).shape == (0,)
    assert last_index(nothing.bool(), index, 0).shape == (0,)
    assert Siblings.of(index).mean_of_others(nothing).shape == (0,)


def test_sums_keep_the_dtype() -> None:
    values, index = torch.ones(3), torch.zeros(3, dtype=torch.int64)
    assert segment_sum(values, index, 1).dtype == torch.float32
    assert discounted_sum(values, index, 0.5).dtype == torch.float32
    assert segment_mean(values, values > 0, index, 1).dtype == torch.float32
