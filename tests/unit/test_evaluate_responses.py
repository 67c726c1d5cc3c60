"""Given responses: what rows are taken, how they become tokens, where their steps end, who are siblings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.errors import InputError
from prime_megatron.evaluate.responses import Encoder, Response, Siblings, encode_group, read_responses, sibling_groups
from tests.support.toy import make_model

CHAT = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(make_model(tmp_path_factory.mktemp("toy") / "model", layers=1, hidden=32))


def rows(path: Path, *lines: dict[str, Any], labelled: bool = False) -> list[Response]:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_responses(str(path), labelled=labelled)


def encoder(tokenizer: Tokenizer, **changed: Any) -> Encoder:
    table = tokenizer.step_end_table("\n", 65)
    return Encoder(**{"tokenizer": tokenizer, "vocab": 65, "max_tokens": 40, "step_end_table_V": table} | changed)


def test_a_chat_goes_through_the_template_and_ends(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat, text, cut = rows(
        tmp_path / "a.jsonl",
        {"prompt": CHAT, "response": "a\nb"},
        {"prompt": "1+1?", "response": "a\nb"},
        {"prompt": CHAT, "response": "a\nb", "truncated": True},
    )
    one = encoder(tokenizer).encode(chat)
    assert one is not None
    assert tokenizer.decode(one.prompt_ids, skip_special_tokens=False) == "<user>1+1?<bot>"
    assert tokenizer.decode(one.response_ids, skip_special_tokens=False) == "a\nb<eos>"
    assert one.step_ends == (1, 3)  # the line's end, and the last token
    bare = encoder(tokenizer).encode(text)
    assert bare is not None and tokenizer.decode(bare.prompt_ids, skip_special_tokens=False) == "1+1?"
    assert bare.response_ids == one.response_ids
    short = encoder(tokenizer).encode(cut)
    assert short is not None and short.response_ids == one.response_ids[:-1] and short.prompt_ids == one.prompt_ids


def test_steps_end_where_their_texts_do(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (row,) = rows(tmp_path / "a.jsonl", {"prompt": CHAT, "steps": ["ab", "", "c\n\nd", "e"]})
    one = encoder(tokenizer).encode(row)
    assert one is not None
    text = "ab\n\n" + "\n\n" + "c\n\nd\n\n" + "e"
    assert tokenizer.decode(one.response_ids) == text
    assert one.step_ends == (3, 5, 11, 12)  # a step holds the blank line behind it; one within a step ends nothing


def test_steps_share_a_token_where_the_tokenizer_joins_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Joined:
        """Four characters a token."""

        def encode_chat(self, messages: Any) -> tuple[str, list[int]]:
            return "", [1]

        def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
            starts = list(range(0, len(text), 4))
            return [5] * len(starts), starts

    (row,) = rows(tmp_path / "a.jsonl", {"prompt": CHAT, "steps": ["a", "", "bcd"]})  # "a\n\n\n\nbcd"
    one = Encoder(Joined(), 65, 40, None).encode(row)  # type: ignore[arg-type]
    assert one is not None and len(one.response_ids) == 2
    assert one.step_ends == (0, 1, 1)


def test_what_is_too_long_or_empty_is_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long, empty = rows(
        tmp_path / "a.jsonl",
        {"prompt": CHAT, "response": "a" * 40},
        {"prompt": CHAT, "response": "", "prompt_ids": [2], "response_ids": []},
    )
    assert encoder(tokenizer).encode(long) is None and encoder(tokenizer).encode(empty) is None
    assert encoder(tokenizer, max_tokens=47).encode(long) is not None  # 6 + 40 + 1
    assert encode_group(encoder(tokenizer), Siblings((long, empty)), "u", 0) is None


def test_labels(tmp_path: Path) -> None:
    base = {"prompt": "p", "response": "r"}
    graded, scored, both = rows(
        tmp_path / "a.jsonl", base | {"outcome": 1}, base | {"score": 0.5}, base | {"outcome": 0.0, "score": 1.0}
    )
    assert [row.sample.outcome for row in (graded, scored, both)] == [1.0, 0.5, 0.0]
    for line, words in (
        (base, "outcome is missing"),
        (base | {"outcome": 2}, "outcome must be a number in"),
        ({"response": "r", "outcome": 1}, "prompt is missing"),
        ({"prompt": "p", "outcome": 1}, "response is missing"),
        (base | {"steps": "a"}, "steps must be a list of texts"),
    ):
        with pytest.raises(InputError, match=rf"a\.jsonl, row 1: .*{words}"):
            rows(tmp_path / "a.jsonl", line, labelled=True)


def test_siblings_share_a_prompt_and_large_groups_are_dealt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lines = [{"prompt": prompt, "response": str(i), "outcome": i % 2} for i, prompt in enumerate("aabababaaa")]
    groups = sibling_groups(rows(tmp_path / "a.jsonl", *lines), 4)
    assert [[int(one.sample.response) for one in group.responses] for group in groups] == [
        [0, 3, 7, 9],
        [1, 5, 8],
        [2, 4, 6],
    ]
    group = encode_group(encoder(tokenizer), groups[0], "uid", 3)
    assert group is not None and group.outcomes == [0.0, 1.0, 1.0, 1.0] and group.prompt.uid == "uid"
