"""Groups to packed batches, batches to micro-batches and back."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.data.batch import make_batch, plan_groups, select
from prime_megatron.types import Group, Prompt, Sample

LIMITS = {"max_tokens": None, "max_sequences": None}


def make_group(uid: str, prompt: tuple, *responses: tuple, outcomes=None) -> Group:
    samples = tuple(
        Sample(
            response,
            tuple(-0.1 * (token + 1) for token in response),
            "length" if number % 2 else "stop",
            number + 3,
            outcome=(outcomes or [0.0] * len(responses))[number],
        )
        for number, response in enumerate(responses)
    )
    return Group(Prompt(uid, 0, prompt, "math", "1"), samples)


@pytest.fixture
def documented():
    """The example of prime_megatron/types.py: [5, 6] with [7, 8] and [9]."""
    return [make_group("0-0", (5, 6), (7, 8), (9,), outcomes=[1.0, 0.25])]


def test_the_documented_example(documented):
    plan = plan_groups(documented, num_mini_batches=1, dp_size=1, **LIMITS)
    table_V = torch.zeros(10, dtype=torch.bool)
    table_V[[5, 7]] = True
    batch = make_batch(documented, plan, 0, table_V)
    assert batch.tokens_T.tolist() == [5, 6, 7, 8, 5, 6, 9]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.response_mask_T.tolist() == [False, False, True, True, False, False, True]
    assert batch.group_N.tolist() == [0, 0]
    assert batch.outcome_N.tolist() == [1.0, 0.25]
    assert batch.truncated_N.tolist() == [False, True]
    assert batch.version_N.tolist() == [3, 4]
    torch.testing.assert_close(batch.engine_logprobs_T, torch.tensor([0, 0, -0.8, -0.9, 0, 0, -1.0]))
    # 7 closes a step; 5 would, but it is the prompt's; the last response token always does.
    assert batch.step_end_T.tolist() == [False, False, True, True, False, False, True]
    assert (batch.num_tokens, batch.num_sequences) == (3, 2)
    assert make_batch(documented, plan, 0).step_end_T.tolist() == [False, False, False, True, False, False, True]
    dtypes = (batch.tokens_T, batch.cu_seqlens, batch.group_N, batch.version_N)
    assert all(tensor.dtype is torch.int64 for tensor in dtypes)
    assert batch.outcome_N.dtype is batch.engine_logprobs_T.dtype is torch.float32


def test_a_rank_without_groups(documented):
    plan = plan_groups(documented, num_mini_batches=1, dp_size=2, **LIMITS)
    batch = make_batch(documented, plan, 1)
    assert batch.tokens_T.tolist() == []
    assert batch.cu_seqlens.tolist() == [0]
    assert (batch.num_groups, batch.num_tokens, batch.num_sequences) == (0, 3, 2)
    (mini,) = plan.micro_batches(1, 1)
    packed = select(batch, mini.micro[0], total_multiple=4)
    assert packed.tokens_S.tolist() == [0, 0, 0, 0]
    assert packed.cu_seqlens.tolist() == [0, 4]
    assert packed.positions_S.tolist() == [0, 1, 2, 3]
    assert not packed.response_mask_S.any()
    assert packed.num_sequences == 0
    assert packed.gather(torch.zeros(0)).tolist() == [0, 0, 0, 0]


def test_the_documented_micro_batch():
    groups = [make_group("0-0", (5,), (6, 7)), make_group("0-1", (8,), (9,))]
    batch = make_batch(groups, plan_groups(groups, num_mini_batches=1, dp_size=1, **LIMITS), 0)
    packed = select(batch, (0, 1), padded=True, total_multiple=4)
    assert packed.tokens_S.tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert packed.cu_seqlens.tolist() == [0, 3, 6, 8]
    assert packed.cu_seqlens.dtype is torch.int32
    assert packed.positions_S.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert packed.source_S.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert packed.response_mask_S.tolist() == [False, True, True, False, True, False, False, False]
    assert packed.sequence_index.tolist() == [0, 1]
    assert packed.max_seqlen == 3
    with_pad = select(batch, (1,), sequence_multiple=4, pad_token=77)
    assert with_pad.tokens_S.tolist() == [8, 9, 77, 77]
    assert with_pad.cu_seqlens.tolist() == [0, 4]
    both = select(batch, (1,), sequence_multiple=4, total_multiple=3)
    assert both.cu_seqlens.tolist() == [0, 4, 12], "the dummy keeps the multiple of a sequence too"


tokens = st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple)
groups_of = st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=8).map(
    lambda rows: [make_group(f"0-{i}", prompt, *responses) for i, (prompt, responses) in enumerate(rows)]
)


@settings(deadline=None)
@given(
    groups_of,
    st.integers(1, 3),
    st.none() | st.integers(1, 30),
    st.booleans(),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 3, 8]),
)
def test_round_trip_through_micro_batches(groups, dp_size, max_tokens, padded, sequence_multiple, total_multiple):
    plan = plan_groups(groups, num_mini_batches=1, dp_size=dp_size, max_tokens=max_tokens, max_sequences=None)
    sequences = []
    for rank in range(dp_size):
        batch = make_batch(groups, plan, rank)
        out_T = torch.full((batch.tokens_T.numel(),), -7.0)
        values_T = torch.arange(batch.tokens_T.numel()) * 1.5
        for indices in plan.micro_batches(rank, 1)[0].micro:
            packed = select(
                batch, indices, padded=padded, sequence_multiple=sequence_multiple, total_multiple=total_multiple
            )
            check_layout(batch, packed, indices, padded, sequence_multiple, total_multiple)
            values_S = packed.gather(values_T)
            out_T[packed.source_S[packed.real_S]] = values_S[packed.real_S] + 1
        assert torch.equal(out_T, values_T + 1), "every token written once, in its place"
        bounds = batch.cu_seqlens.tolist()
        split = [tuple(batch.tokens_T[a:b].tolist()) for a, b in itertools.pairwise(bounds)]
        sequences += split
        assert [batch.group_N.tolist().count(i) for i in range(batch.num_groups)] == [
            len(group.samples) for group in batch.groups
        ]
    given_sequences = [group.prompt.token_ids + sample.token_ids for group in groups for sample in group.samples]
    assert sorted(sequences) == sorted(given_sequences)


def check_layout(batch, packed, indices, padded, sequence_multiple, total_multiple):
    """Read sequence by sequence, with no help from the code under test."""
    bounds = packed.cu_seqlens.tolist()
    starts = batch.cu_seqlens.tolist()
    total = packed.tokens_S.numel()
    assert bounds[-1] == total
    assert total % total_multiple == 0
    assert all((b - a) % sequence_multiple == 0 and b > a for a, b in itertools.pairwise(bounds))
    assert packed.max_seqlen == max(b - a for a, b in itertools.pairwise(bounds))
    assert len(bounds) - 1 - len(indices) in (0, 1)
    for slot, index in enumerate(indices):
        a, length = bounds[slot], starts[index + 1] - starts[index]
        real = slice(starts[index], starts[index + 1])
        assert packed.tokens_S[a : a + length].tolist() == batch.tokens_T[real].tolist()
        assert packed.response_mask_S[a : a + length].tolist() == batch.response_mask_T[real].tolist()
        assert packed.source_S[a : a + length].tolist() == list(range(starts[index], starts[index + 1]))
        assert packed.source_S[a + length : bounds[slot + 1]].eq(-1).all()
        assert packed.positions_S[a : bounds[slot + 1]].tolist() == list(range(bounds[slot + 1] - a))
    assert not packed.response_mask_S[~packed.real_S].any()
    assert int(packed.real_S.sum()) == sum(starts[i + 1] - starts[i] for i in indices)
    if padded and indices:
        widths = {bounds[slot + 1] - bounds[slot] for slot in range(len(indices))}
        assert len(widths) == 1
    if not padded and sequence_multiple == total_multiple == 1 and indices:
        assert packed.real_S.all(), "packing wastes nothing"


def test_lengths_that_do_not_belong_together_are_a_bug():
    group = Group(Prompt("0-0", 0, (1,), "", ""), (Sample((2, 3), (0.0,), "stop", 0),))
    plan = plan_groups([group], num_mini_batches=1, dp_size=1, **LIMITS)
    with pytest.raises(AssertionError):
        make_batch([group], plan, 0)
