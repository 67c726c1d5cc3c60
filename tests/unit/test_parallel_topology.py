"""Rank arithmetic, pipeline splits and their errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.errors import InputError
from prime_megatron.parallel.layers import layer_ranges, spread
from prime_megatron.parallel.topology import ParallelSizes

POWERS = st.sampled_from([1, 2, 3, 4])


@settings(deadline=None)
@given(POWERS, POWERS, POWERS, POWERS)
def test_coordinates_are_megatrons_order(tensor: int, context: int, data: int, pipeline: int) -> None:
    sizes = ParallelSizes(tensor * context * data * pipeline, tensor=tensor, context=context, pipeline=pipeline)
    assert sizes.data == data
    grid = np.arange(sizes.world).reshape(pipeline, data, context, tensor)
    for (p, d, c, t), rank in np.ndenumerate(grid):
        at = sizes.coordinates(int(rank))
        assert (at.pipeline, at.data, at.context, at.tensor) == (p, d, c, t)


@settings(deadline=None)
@given(POWERS, POWERS, POWERS, POWERS)
def test_expert_coordinates(expert_tensor: int, expert: int, expert_data: int, pipeline: int) -> None:
    world = expert_tensor * expert * expert_data * pipeline
    sizes = ParallelSizes(world, pipeline=pipeline, expert=expert, expert_tensor=expert_tensor)
    assert sizes.expert_data == expert_data
    grid = np.arange(world).reshape(pipeline, expert_data, expert, expert_tensor)
    for (p, d, e, t), rank in np.ndenumerate(grid):
        at = sizes.coordinates(int(rank))
        assert (at.pipeline, at.expert_data, at.expert, at.expert_tensor) == (p, d, e, t)


def test_errors_carry_the_arithmetic() -> None:
    with pytest.raises(InputError, match="tensor 2 x pipeline 3 x context 1 = 6 does not divide 8 processes"):
        ParallelSizes(8, tensor=2, pipeline=3)
    with pytest.raises(InputError, match="expert_tensor 1 x expert 3 x pipeline 1 = 3 does not divide 8"):
        ParallelSizes(8, expert=3)
    with pytest.raises(InputError, match="2 chunks need pipeline >= 2"):
        ParallelSizes(8, virtual_pipeline=2)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_spread(count: int, parts: int) -> None:
    sizes = spread(count, parts)
    assert sum(sizes) == count
    assert len(sizes) == parts
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 20))
def test_layer_ranges_cover_in_order(pipeline: int, virtual: int, extra: int) -> None:
    layers = pipeline * virtual + extra
    ranges = layer_ranges(layers, pipeline, virtual, None)
    visited = [layer for chunk in range(virtual) for stage in range(pipeline) for layer in ranges[stage][chunk]]
    assert visited == list(range(layers))


def test_explicit_stages() -> None:
    assert layer_ranges(5, 2, 1, (4, 1)) == [[range(4)], [range(4, 5)]]
    assert layer_ranges(6, 2, 2, (4, 2)) == [[range(2), range(3, 5)], [range(2, 3), range(5, 6)]]
    with pytest.raises(InputError, match=r"\[3, 1\] has 2 stages and 4 layers"):
        layer_ranges(5, 2, 1, (3, 1))
    with pytest.raises(InputError, match="without layers"):
        layer_ranges(2, 2, 2, None)
