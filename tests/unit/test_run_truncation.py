"""The alarm that every response was cut: it names what the tokens show."""

from __future__ import annotations

from pathlib import Path

from prime_megatron.data.tokenizer import load_tokenizer
from prime_megatron.run.truncation import truncation_alarm
from prime_megatron.types import Group, Prompt, Sample
from tests.support.chat_folder import TURNS, make_chat_folder


def groups_of(*responses: tuple[list[int], str]) -> list[Group]:
    prompt = Prompt("0-0", 0, (1,), "math", "4")
    return [Group(prompt, (Sample(tuple(ids), (0.0,) * len(ids), finish, 0),)) for ids, finish in responses]


def test_the_alarm_names_a_control_token_that_ends_nothing(tmp_path: Path) -> None:
    other = TURNS.replace("<|close|>", "")
    tokenizer = load_tokenizer(make_chat_folder(tmp_path, other, eos="<|end|>"))
    close, turn = tokenizer.encode("<|close|>")[0], tokenizer.encode("<|turn|>")[0]
    cut = groups_of(([1, close, 2, turn], "length"), ([1, close, 2], "length"), ([1, 2], "length"))
    said = truncation_alarm(cut, tokenizer, 4)
    assert said is not None and said.startswith("every one of the 3 responses was cut at 4 tokens")
    assert f"2 of them wrote '<|close|>' ({close}), where no response ends" in said
    plain = truncation_alarm(groups_of(([1, 2], "length")), tokenizer, 4)
    assert plain is not None and "none wrote '<|end|>'; the limit is too low" in plain


def test_one_response_that_ends_is_no_alarm(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_chat_folder(tmp_path))
    assert truncation_alarm(groups_of(([1], "length"), ([1], "stop")), tokenizer, 4) is None
    assert truncation_alarm([], tokenizer, 4) is None
