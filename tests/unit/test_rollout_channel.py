"""The line between the trainer and an engine process: whole messages, ends, and a side that does not read."""

from __future__ import annotations

import socket
import threading

import pytest

from prime_megatron.rollout.process.channel import Channel


@pytest.fixture
def ends() -> tuple[Channel, Channel]:
    one, two = socket.socketpair()
    return Channel(one), Channel(two)


def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    messages = [{"place": place, "text": "x\n" * size} for place, size in enumerate((0, 1, 1_000_000))]
    sender = threading.Thread(target=lambda: [one.send(message, 30.0) for message in messages])
    sender.start()
    assert [two.receive(30.0) for _ in messages] == messages
    sender.join()


def test_silence_is_none_and_a_closed_line_an_end(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    assert two.receive(0.01) is None
    one.close()
    with pytest.raises(EOFError):
        two.receive(1.0)
    with pytest.raises(EOFError):
        two.send({"text": "y" * 1_000_000}, 1.0)


def test_a_side_that_reads_nothing_does_not_block_the_other(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    with pytest.raises(TimeoutError):
        one.send({"text": "y" * 10_000_000}, 0.1)
    two.close()
