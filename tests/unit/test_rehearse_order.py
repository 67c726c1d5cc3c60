"""Ranks that ask for different things of one group are told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prime_megatron.mcore.fake_calls import Call
from prime_megatron.rehearse.order import disagreement

PAIR = (0, 1)


def call(name: str, numel: int = 4, peer: int | None = None, group: str = "1:TENSOR") -> Call:
    return Call(name, group, PAIR, numel, "float32", peer)


REDUCE, GATHER = call("allreduce_"), call("_allgather_base_", 8)
OTHER = call("allreduce_", group="2:WORLD")


def test_the_same_order_agrees_and_other_groups_may_come_between() -> None:
    assert disagreement({0: [REDUCE, GATHER, OTHER], 1: [REDUCE, OTHER, GATHER]}) is None
    assert disagreement({0: [REDUCE], 5: []}) is None  # rank 1 was not heard


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ([GATHER, REDUCE], "call 0: rank 0: allreduce_ float32 4; rank 1: _allgather_base_ float32 8"),
        ([REDUCE], "call 1: rank 0: _allgather_base_ float32 8; rank 1: nothing more"),
        ([], "call 0: rank 0: allreduce_ float32 4; rank 1: nothing more"),
        ([REDUCE, replace(GATHER, numel=9)], "float32 8; rank 1: _allgather_base_ float32 9"),
        ([REDUCE, replace(GATHER, dtype="bfloat16")], "rank 1: _allgather_base_ bfloat16 8"),
    ],
)
def test_what_one_rank_does_otherwise_is_named(second: list[Call], told: str) -> None:
    fault = disagreement({0: [REDUCE, GATHER], 1: second})
    assert fault is not None and told in fault and fault.startswith("group 1:TENSOR of ranks [0, 1]")


def test_roots_of_a_broadcast_are_compared_and_splits_of_an_exchange_are_not() -> None:
    assert "from 1" in str(disagreement({0: [call("broadcast_", peer=0)], 1: [call("broadcast_", peer=1)]}))
    assert disagreement({0: [call("alltoall_base_", 5)], 1: [call("alltoall_base_", 7)]}) is None


def test_every_message_is_received_as_it_was_sent() -> None:
    send, receive = call("send", peer=1), call("recv_", peer=0)
    assert disagreement({0: [send, send], 1: [receive, receive]}) is None
    assert "receives: nothing more" in str(disagreement({0: [send], 1: []}))
    assert "receives: float32 3" in str(disagreement({0: [send], 1: [replace(receive, numel=3)]}))
    assert "sends: nothing more" in str(disagreement({0: [], 1: [receive]}))


def test_a_group_that_a_rank_is_not_in_is_named() -> None:
    assert disagreement({2: [REDUCE]}) == "rank 2 asks group 1:TENSOR for allreduce_, of which it is no member"
