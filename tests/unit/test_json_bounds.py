"""JSON that others wrote: bounded depth, digits and length; a fault names file and row."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prime_megatron.data import json_line
from prime_megatron.data.rows import read_prompt_rows, read_sft_rows
from prime_megatron.errors import InputError
from prime_megatron.strict_json import MAX_DEPTH, MAX_DIGITS, parse_json, read_json

PROMPT = {"prompt": [{"role": "user", "content": "1+1?"}], "ability": "math", "reward_model": {"ground_truth": "2"}}
SFT = {"prompt": "1+1?", "response": "2"}


def nest(depth: int) -> str:
    return "[" * depth + "]" * depth


ROWS = {
    "deep list": (nest(5000), f"nested more than {MAX_DEPTH} deep"),
    "deep object": ('{"a":' * 5000 + "1" + "}" * 5000, f"nested more than {MAX_DEPTH} deep"),
    "deep inside": (json.dumps(PROMPT)[:-1] + f', "extra_info": {{"a": {nest(900)}}}}}', "deep"),
    "unclosed": ("[" * 1_000_000, f"nested more than {MAX_DEPTH} deep"),
    "digits": (json.dumps(PROMPT)[:-1] + ', "extra_info": {"a": ' + "9" * 5000 + "}}", "an integer of 5000 digits"),
    "negative": ("-" + "9" * 5000, "an integer of 5001 digits"),
    "surrogate": (json.dumps(PROMPT).replace("1+1", "\\ud800"), "half of a surrogate pair"),
    "surrogate key": ('{"\\udfff": 1}', "half of a surrogate pair"),
    "not UTF-8": (b'{"a": "\xed\xa0\x80"}', "not UTF-8 text"),
    "a string": ('"' + "\\\\" * 100_000, "not JSON"),
    "a number": ("1e999999999999999999", "a row must be a JSON object"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_row_is_one_line_with_file_and_row(name: str, tmp_path: Path) -> None:
    text, said = ROWS[name]
    for read, good in ((read_prompt_rows, PROMPT), (read_sft_rows, SFT)):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(json.dumps(good).encode() + b"\n" + (text if isinstance(text, bytes) else text.encode()))
        with pytest.raises(InputError) as refused:
            read([str(path)])
        message = str(refused.value)
        assert message.startswith(f"{path}, row 2: ") and said in message
        assert "\n" not in message and len(message) < 400


def test_a_line_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_line, "MAX_ROW_BYTES", 2**20)
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(PROMPT).encode() + b"\n")
        file.truncate(2**36)  # sparse: 64 GiB of zeros
    with pytest.raises(InputError, match=r"rows\.jsonl, row 2: more than 1048576 bytes in one line"):
        read_prompt_rows([str(path)])


def test_a_pair_of_surrogates_and_ordinary_depth_pass() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"
    assert parse_json(nest(MAX_DEPTH)) is not None
    assert parse_json('"' + nest(200) + '"') == nest(200), "brackets in a text are text"
    assert parse_json("9" * MAX_DIGITS) == int("9" * MAX_DIGITS)
    assert parse_json("\ufeff{}".encode()) == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**250), 10**250) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(json_values)
def test_what_json_holds_is_read_as_ever(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["[", '{"a":', '"' + '\\"' * 2, "\\u", '["', "9"])
def test_hostile_texts_cost_what_they_are_long(text: str) -> None:
    """Three million characters: a reader whose cost is the square of that would not end within the test's limit."""
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        parse_json(text * (3_000_000 // len(text)))


def test_files_that_are_none_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "nowhere", tmp_path / "pipe" / "below"):
        with pytest.raises(InputError, match=r"^[^\n]*$"):
            read_json(path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(InputError, match="10000000000 bytes are more than"):
        read_json(tmp_path / "large.json")
