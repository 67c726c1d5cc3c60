"""Rows of JSONL and parquet: what is read, and the one line for what is wrong."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prime_megatron.data import rows as rows_module
from prime_megatron.data.rows import Message, iterate, read_prompt_rows, read_sft_rows
from prime_megatron.errors import InputError

ROW = {
    "data_source": "gsm8k",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 0},
}


def jsonl(path: Path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def changed(**keys):
    row = {**ROW, **keys}
    return {key: value for key, value in row.items() if value is not ...}


def test_jsonl_and_parquet_give_the_same_rows(tmp_path):
    rows = [changed(ability="code", reward_model={"style": "rule", "ground_truth": '{"inputs": [], "outputs": []}'})]
    rows += [changed(prompt=[{"role": "system", "content": "s"}, *ROW["prompt"]])]
    rows += [changed(data_source=f"s{i}") for i in range(5)]
    from_jsonl = read_prompt_rows([jsonl(tmp_path / "a.jsonl", *rows)])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    from_parquet = read_prompt_rows([str(tmp_path / "a.parquet")])
    assert [row.origin for row in from_jsonl] == [f"{tmp_path}/a.jsonl, row {i}" for i in range(1, 8)]
    assert [row.origin for row in from_parquet] == [f"{tmp_path}/a.parquet, row {i}" for i in range(1, 8)]
    for one, two in zip(from_jsonl, from_parquet, strict=True):
        assert (one.messages, one.ability, one.ground_truth) == (two.messages, two.ability, two.ground_truth)
        assert one.data_source == two.data_source
    assert from_jsonl[0].ability == "code"
    assert from_jsonl[1].messages == (Message("system", "s"), Message("user", "1+1?"))
    assert from_jsonl[2].ground_truth == "2"


def test_parquet_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "PARQUET_ROWS_AT_ONCE", 3)
    rows = [changed(reward_model={"ground_truth": str(i)}) for i in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=4)
    read = read_prompt_rows([str(tmp_path / "a.parquet")])
    assert [row.ground_truth for row in read] == [str(i) for i in range(10)]
    assert [int(row.origin.rpartition(" ")[2]) for row in read] == list(range(1, 11))


def test_files_follow_one_another_and_blank_lines_are_skipped(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", ROW, "", changed(reward_model={"ground_truth": "3"}))
    two = jsonl(tmp_path / "b.jsonl", changed(reward_model={"ground_truth": "4"}))
    read = read_prompt_rows([one, two])
    assert [row.ground_truth for row in read] == ["2", "3", "4"]
    assert read[1].origin.endswith("a.jsonl, row 3"), "the line of the file"


def test_system_prompt_where_the_row_has_none(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROW, changed(prompt=[{"role": "system", "content": "own"}, *ROW["prompt"]]))
    read = read_prompt_rows([path], "given")
    assert [row.messages[0] for row in read] == [Message("system", "given"), Message("system", "own")]
    assert all(len(row.messages) == 2 for row in read)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (changed(reward_model={"style": "rule"}), "no ground truth; set reward_model.ground_truth"),
        (changed(reward_model={"ground_truth": ""}), "no ground truth; set reward_model.ground_truth"),
        (changed(reward_model={"ground_truth": None}), "no ground truth; set reward_model.ground_truth"),
        (changed(reward_model={"ground_truth": 4}), "reward_model.ground_truth must be text, got a number; quote it"),
        (changed(reward_model="2"), "reward_model must be an object with ground_truth"),
        (
            changed(reward_model=...),
            "reward_model is missing; the row has data_source, prompt, ability, extra_info",
        ),
        (changed(ability=...), "ability is missing; the row has data_source, prompt, reward_model, extra_info"),
        (changed(ability=3), "ability must be text that is not empty, got a number"),
        (changed(prompt="1+1?"), "prompt must be a list of chat messages, got text"),
        (changed(prompt=[]), "prompt has no messages"),
        (changed(prompt=["1+1?"]), "prompt[0] must be an object with role and content, got text"),
        (
            changed(prompt=[{"role": "human", "content": "x"}]),
            "prompt[0] has the unknown role 'human'; use system, user, assistant",
        ),
        (changed(prompt=[{"role": "user"}]), "prompt[0]: content must be text, got nothing"),
        (
            changed(prompt=[*ROW["prompt"], {"role": "assistant", "content": "2"}]),
            "prompt ends with a message of assistant; the last must be user's",
        ),
        (changed(prompt=[*ROW["prompt"], {"role": "system", "content": "2"}]), None),
        (changed(data_source=1), "data_source must be text, got a number"),
        ("{not json", "not JSON (Expecting property name enclosed in double quotes, column 2)"),
        ("[1, 2]", "a row must be a JSON object, got a list"),
    ],
)
def test_bad_rows_are_named_by_file_and_row(tmp_path, bad, message):
    path = jsonl(tmp_path / "a.jsonl", ROW, bad)
    with pytest.raises(InputError) as error:
        read_prompt_rows([path])
    start, text = f"{path}, row 2", str(error.value)
    assert text.startswith(start)
    assert "\n" not in text
    if message:
        assert text == f"{start}: {message}"


def test_bad_files(tmp_path):
    for name, content, words in (
        ("empty.jsonl", b"", "the data file is empty"),
        ("blank.jsonl", b"\n\n", "the data file is empty"),
        ("bytes.jsonl", b'{"a": "\xff"}\n', "row 1: not UTF-8 text"),
        ("broken.parquet", b"PAR1 no", "not a readable parquet file"),
        ("rows.csv", b"a,b\n", "unknown kind of data file; use .jsonl or .parquet"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            read_prompt_rows([str(tmp_path / name)])
        assert str(tmp_path / name) in str(error.value)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such data file"):
        read_prompt_rows([str(tmp_path / "absent.jsonl")])
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(InputError, match="the data file is empty"):
        read_prompt_rows([str(tmp_path / "none.parquet")])


def test_an_empty_file_among_full_ones_is_named(tmp_path):
    full, empty = jsonl(tmp_path / "a.jsonl", ROW), jsonl(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match=r"b\.jsonl: the data file is empty"):
        read_prompt_rows([full, empty])


def test_iterate_stops_where_the_reader_does(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", ROW, "{broken")
    assert next(iterate(path)) == (1, ROW)


def test_sft_rows(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = jsonl(
        tmp_path / "s.jsonl",
        {"messages": chat},
        {"prompt": "q", "response": "a"},
        {"prompt": [{"role": "system", "content": "s"}, chat[0]], "response": "a"},
    )
    pair = (Message("user", "q"), Message("assistant", "a"))
    assert [row.messages for row in read_sft_rows([path])] == [pair, pair, (Message("system", "s"), *pair)]
    pq.write_table(pa.Table.from_pylist([{"messages": chat}]), tmp_path / "s.parquet")
    assert read_sft_rows([str(tmp_path / "s.parquet")])[0].messages == pair


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"prompt": "q"}, "response is missing"),
        ({"prompt": "q", "response": ""}, "response must be text that is not empty"),
        ({"text": "q"}, "neither messages nor prompt and response"),
        ({"messages": [{"role": "user", "content": "q"}]}, "the last message must be the assistant's"),
        ({"messages": [{"role": "assistant", "content": "q"}]}, "after at least one other"),
        ({"messages": "q"}, "messages must be a list of chat messages, got text"),
    ],
)
def test_bad_sft_rows(tmp_path, bad, words):
    path = jsonl(tmp_path / "s.jsonl", bad)
    with pytest.raises(InputError) as error:
        read_sft_rows([path])
    assert str(error.value).startswith(f"{path}, row 1: ")
    assert words in str(error.value)
