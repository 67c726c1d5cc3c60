"""A reshard plan with a fault is found, element by element; a sound one is not suspected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.engine_layout import fused_pieces, fused_shapes
from prime_megatron.families.megatron_layout import shard_map
from prime_megatron.families.read import read_config
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.parallel.topology import ParallelSizes
from prime_megatron.rehearse.written import wrong_layout, wrong_source, wrong_write
from prime_megatron.weights.plan import ReshardPlan, hold, plan_block
from tests.support.models import make_model

LIMIT = 1000
Case = tuple[FamilyConfig, list[list[ShardSlice]], list[list[ShardSlice]], ReshardPlan]


@pytest.fixture(scope="module", params=["qwen2_tied", "qwen3_moe"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """(family, sources, wants, plan) of four ranks, tensor 2 x pipeline 2, and engines of two ranks."""
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, request.param)
    family = read_config(folder)
    sizes = ParallelSizes(4, tensor=2, pipeline=2)
    sources = [shard_map(family, sizes, sizes.coordinates(rank), None, value_head=False) for rank in range(4)]
    engine = [fused_pieces(family, 2, rank) for rank in range(2)]
    wants = [engine[rank % 2] for rank in range(4)]
    return family, sources, wants, plan_block(hold(sources), wants)


def with_copy(plan: ReshardPlan, rank: int, index: int, *copies: Any) -> ReshardPlan:
    """The plan with one of a rank's own copies replaced."""
    mine = plan.local[rank]
    changed = (*mine[:index], *copies, *mine[index + 1 :])
    return replace(plan, local=(*plan.local[:rank], changed, *plan.local[rank + 1 :]))


def shorter(region: Any) -> Any:
    return (*region[:-1], (region[-1][0], region[-1][1] - 1))


def test_a_sound_plan_has_no_fault(case: Case) -> None:
    _, sources, wants, plan = case
    assert wrong_write(plan, sources, wants, LIMIT) is None


def test_one_element_left_out_is_found(case: Case) -> None:
    _, sources, wants, plan = case
    copy = next(copy for copy in plan.local[1] if len(copy.of) == 1)  # a norm: its last element is one element
    less = replace(copy, of=shorter(copy.of), to=shorter(copy.to))
    fault = wrong_write(with_copy(plan, 1, plan.local[1].index(copy), less), sources, wants, LIMIT)
    assert fault == f"rank 1 of the block, {copy.target}: 1 elements are written by nothing"


def test_one_element_of_what_travels_left_out_is_found(case: Case) -> None:
    _, sources, wants, plan = case
    index, transfer = next((i, t) for i, t in enumerate(plan.transfers) if len(t.of) == 1)
    places = tuple(replace(place, to=shorter(place.to)) for place in transfer.destinations)
    less = replace(transfer, of=shorter(transfer.of), destinations=places)
    cut = replace(plan, transfers=(*plan.transfers[:index], less, *plan.transfers[index + 1 :]))
    fault = wrong_write(cut, sources, wants, LIMIT)
    assert fault is not None and f"{places[0].target}: 1 elements are written by nothing" in fault


def test_a_second_write_is_found(case: Case) -> None:
    _, sources, wants, plan = case
    copy = plan.local[0][0]
    fault = wrong_write(with_copy(plan, 0, 0, copy, copy), sources, wants, LIMIT)
    assert fault is not None and copy.target in fault and fault.endswith("is written twice")


def test_two_rows_in_each_others_place_are_found(case: Case) -> None:
    _, sources, wants, plan = case
    index, copy = next((i, c) for i, c in enumerate(plan.local[0]) if len(c.of) == 2)
    (start, stop), columns = copy.of
    (to, _), to_columns = copy.to

    def rows(first: int, last: int, place: int) -> Any:
        return replace(
            copy,
            of=((start + first, start + last), columns),
            to=((to + place, to + place + last - first), to_columns),
        )

    swapped = with_copy(plan, 0, index, rows(0, 1, 1), rows(1, 2, 0), rows(2, stop - start, 2))
    fault = wrong_write(swapped, sources, wants, 9)
    assert fault is not None and f"comes from elsewhere ({copy.source} of rank 0)" in fault


def test_a_sound_engine_layout_has_no_fault_and_a_piece_less_is_one(case: Case) -> None:
    family, _, wants, _ = case
    shapes = fused_shapes(family, 2)
    names = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in shapes]
    padding = {name: (2 * shapes[name][0] - family.vocab) * family.hidden for name in names}
    assert wrong_layout(wants[:2], shapes, padding) is None
    norm = next(piece for piece in wants[1] if piece.param == "model.norm.weight")
    less = [piece if piece is not norm else replace(piece, local=((0, 31),), hf=((0, 31),)) for piece in wants[1]]
    fault = wrong_layout([wants[0], less], shapes, padding)
    assert fault == "model.norm.weight of the engine: 1 elements are filled by nothing"
    assert wrong_layout([wants[0], [*wants[1], norm]], shapes, padding) is not None
    # Both ranks hold the first rank's part of everything.
    rows = {name: min(shapes[name][0], family.vocab) for name in names}
    twice = {name: 2 * (shapes[name][0] - rows[name]) * family.hidden for name in names}
    assert "ranks together do not hold it once" in str(wrong_layout([wants[0], wants[0]], shapes, twice))


def test_parameters_that_the_plan_does_not_know_are_found(case: Case) -> None:
    _, sources, _, _ = case
    shapes: dict[tuple[int, str], tuple[int, ...]] = {}
    for piece in sources[0]:
        ends = tuple(stop for _, stop in piece.local)
        shapes[0, piece.param] = tuple(map(max, ends, shapes.get((0, piece.param), ends)))
    assert wrong_source(shapes, sources[0]) is None
    assert "in no piece of the plan" in str(wrong_source(shapes | {(0, "more.weight"): (3,)}, sources[0]))
    name = next(iter(shapes))
    small = tuple(size - 1 for size in shapes[name])
    assert "is outside of" in str(wrong_source(shapes | {name: small}, sources[0]))
    assert "is two pieces at once" in str(wrong_source(shapes, [*sources[0], sources[0][0]]))
    assert "is no parameter" in str(wrong_source({k: v for k, v in shapes.items() if k != name}, sources[0]))
