"""A prompt with the truth in it: behind the last user message, bounded, and only for who asks."""

from __future__ import annotations

import pytest

from prime_megatron.data.encode import Skip, encode_prompt
from prime_megatron.data.messages import Message
from prime_megatron.data.rows import PromptRow
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.data.told import Telling
from prime_megatron.errors import InputError
from prime_megatron.types import Prompt
from tests.support.toy import make_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_model(tmp_path_factory.mktemp("told"), hidden=32, layers=2))


def row(*messages: Message, truth: str = "12") -> PromptRow:
    return PromptRow(messages, "math", truth, "toy", "a.jsonl, row 1")


CHAT = (Message("user", "6+6?"), Message("assistant", "what"), Message("user", "add"))


def test_the_truth_stands_behind_the_last_user_message(tokenizer: Tokenizer) -> None:
    prompt = encode_prompt(row(*CHAT), tokenizer, "0-0", 0, 100, Telling(" {truth}?", 8))
    assert isinstance(prompt, Prompt)
    assert tokenizer.decode(prompt.token_ids, skip_special_tokens=False) == "<user>6+6?<bot>what<eos><user>add<bot>"
    told = tokenizer.decode(prompt.told_ids, skip_special_tokens=False)
    assert told == "<user>6+6?<bot>what<eos><user>add 12?<bot>"


def test_no_one_is_told_unasked(tokenizer: Tokenizer) -> None:
    prompt = encode_prompt(row(*CHAT), tokenizer, "0-0", 0, 100)
    assert isinstance(prompt, Prompt) and prompt.told_ids == ()


def test_a_long_truth_is_skipped(tokenizer: Tokenizer) -> None:
    telling = Telling("{truth}", 8)
    assert isinstance(encode_prompt(row(*CHAT, truth="1" * 8), tokenizer, "", 0, 100, telling), Prompt)
    assert encode_prompt(row(*CHAT, truth="1" * 9), tokenizer, "", 0, 100, telling) is Skip.long_truth


def test_a_chat_without_a_user_has_no_place_for_it(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl, row 1: has no user message"):
        encode_prompt(row(Message("assistant", "12")), tokenizer, "", 0, 100, Telling("{truth}", 8))
