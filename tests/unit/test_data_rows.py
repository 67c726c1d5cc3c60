"""Rows of JSONL and parquet: what is read, and the one line for what is wrong."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prime_megatron.data import files as files_module
from prime_megatron.data import json_line
from prime_megatron.data.files import iterate
from prime_megatron.data.rows import Message, Remarks, read_prompt_rows, read_sft_rows
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
    monkeypatch.setattr(files_module, "PARQUET_ROWS_AT_ONCE", 3)
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
        (changed(reward_model={"ground_truth": None}), "no ground truth; set reward_model.ground_truth"),
        (changed(reward_model={"ground_truth": ["4", None]}), "no ground truth; set reward_model.ground_truth"),
        (changed(reward_model={"ground_truth": []}), "no ground truth; set reward_model.ground_truth"),
        (
            changed(reward_model={"ground_truth": True}),
            "reward_model.ground_truth must be text, a number or a list of them, got a boolean; quote it",
        ),
        (changed(reward_model="2"), "reward_model must be an object with ground_truth"),
        (
            changed(reward_model=...),
            "reward_model is missing; the row has data_source, prompt, ability, extra_info",
        ),
        (changed(ability=...), "ability is missing; the row has data_source, prompt, reward_model, extra_info"),
        (changed(ability=3), "ability must be text that is not empty, got a number"),
        (changed(prompt=" "), "prompt is empty"),
        (changed(prompt={"role": "user"}), "prompt must be a list of chat messages, got an object"),
        (changed(prompt=[]), "prompt has no messages"),
        (changed(prompt=["1+1?"]), "prompt[0] must be an object with role and content, got text"),
        (
            changed(prompt=[{"role": "human", "content": "x"}]),
            "prompt[0] has the unknown role 'human'; use system, user, assistant, tool",
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
        ("rows.csv", b"a,b\n", "unknown kind of data file; use .jsonl, .jsonl.gz, .parquet"),
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


def test_several_truths_and_numbers_are_truths(tmp_path):
    truths = [4, 0.5, ["1/2", 0.5, "1/2"], [7], -3]
    path = jsonl(tmp_path / "a.jsonl", *(changed(reward_model={"ground_truth": truth}) for truth in truths))
    assert [row.truths for row in read_prompt_rows([path])] == [("4",), ("0.5",), ("1/2", "0.5"), ("7",), ("-3",)]


def test_difficulty_is_read_and_checked(tmp_path):
    values = [{"difficulty": value} for value in (0.25, 1, None)]
    path = jsonl(tmp_path / "d.jsonl", *(changed(**value) for value in values), changed())
    assert [row.difficulty for row in read_prompt_rows([path])] == [0.25, 1.0, None, None]
    for bad in (-0.1, 1.5, "hard", True, [1]):
        path = jsonl(tmp_path / "bad.jsonl", changed(), changed(difficulty=bad))
        with pytest.raises(InputError, match=r"bad\.jsonl, row 2: difficulty must be a number from 0 to 1"):
            read_prompt_rows([path])


def test_a_prompt_may_be_text_and_a_system_column_comes_before_it(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        changed(prompt="1+1?"),
        changed(prompt="1+1?", system="Be brief."),
        changed(prompt=[{"role": "system", "content": "own"}, *ROW["prompt"]], system="own"),
    )
    user, brief = Message("user", "1+1?"), Message("system", "Be brief.")
    read = read_prompt_rows([path], "given")
    assert [row.messages for row in read[:2]] == [(Message("system", "given"), user), (brief, user)]
    assert [message.content for message in read[2].messages][0] == "own"
    sft = jsonl(tmp_path / "s.jsonl", {"prompt": "q", "response": "a", "system": "Be brief."})
    assert read_sft_rows([sft])[0].messages[0] == brief
    two = jsonl(
        tmp_path / "b.jsonl", changed(prompt=[{"role": "system", "content": "own"}, *ROW["prompt"]], system="x")
    )
    with pytest.raises(InputError, match=r"row 1: system and the chat's own system message differ"):
        read_prompt_rows([two])


def test_what_nothing_reads_is_told_once_a_file(tmp_path):
    chat = [{"role": "user", "content": "q", "mood": "low"}, {"role": "assistant", "content": "a", "mood": None}]
    path = jsonl(
        tmp_path / "s.jsonl", {"messages": chat}, {"messages": chat, "split": "x"}, {"messages": chat, "split": 1}
    )
    remarks = Remarks()
    read_sft_rows([path], remarks)
    assert remarks.lines() == [
        f"{path}: nothing reads 'mood', which is left out (3 rows, the first is row 1)",
        f"{path}: nothing reads 'split', which is left out (2 rows, the first is row 2)",
    ]
    pq.write_table(
        pa.Table.from_pylist([changed(split="x", reward_model={"ground_truth": "2", "score": 1})]),
        tmp_path / "a.parquet",
    )
    remarks = Remarks()
    read_prompt_rows([str(tmp_path / "a.parquet")], None, remarks)
    assert [line.partition(": ")[2] for line in remarks.lines()] == [
        "nothing reads the column 'split', which is left out",
        "nothing reads 'reward_model.score', which is left out (1 rows, the first is row 1)",
    ]


def test_ids_that_stand_twice_are_told(tmp_path):
    one = jsonl(tmp_path / "a.jsonl", changed(id="7"), changed(id=8), changed(uid="7"))
    two = jsonl(tmp_path / "b.jsonl", changed(id="9"), changed(id="8"), ROW)
    remarks = Remarks()
    read_prompt_rows([one, two], None, remarks)
    assert remarks.lines() == [
        f"{one}: an id that an earlier row has, too (1 rows, the first is row 3)",
        f"{two}: an id that an earlier row has, too (1 rows, the first is row 2)",
    ]


def test_fields_of_a_message_reach_the_template(tmp_path):
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "+1?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "add them"},
        {"role": "tool", "content": "2", "tool_call_id": "x", "name": "add"},
        {"role": "assistant", "content": "2"},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    path = jsonl(
        tmp_path / "s.jsonl", {"messages": chat, "tools": tools}, {"messages": chat, "tools": json.dumps(tools)}
    )
    one, two = read_sft_rows([path])
    assert one.messages == two.messages and one.tools == two.tools == tuple(tools)
    assert [message.for_template() for message in one.messages] == [
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant", "content": "", "reasoning_content": "add them",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "x", "name": "add"},
        {"role": "assistant", "content": "2"},
    ]  # fmt: skip


def test_weights_say_which_answers_are_learned(tmp_path):
    def chat(*weights):
        rows = []
        for index, weight in enumerate(weights):
            rows.append({"role": "user", "content": f"q{index}"})
            rows.append({"role": "assistant", "content": f"a{index}"} | ({} if weight is None else {"weight": weight}))
        return {"messages": rows}

    path = jsonl(tmp_path / "s.jsonl", chat(None, None), chat(0, 1), chat(1, None), chat(1, 0), chat(0, 0))
    read = [(int(row.origin[-1]), row.messages[-1].content, row.learned) for row in read_sft_rows([path])]
    assert read == [
        (1, "a1", True),
        (2, "a1", True),
        (3, "a0", True),
        (3, "a1", True),
        (4, "a0", True),
        (5, "a1", False),
    ]
    every = [(int(row.origin[-1]), row.messages[-1].content) for row in read_sft_rows([path], all_answers=True)]
    assert every == [(1, "a0"), (1, "a1"), *((row, text) for row, text, _ in read[1:])], "a weight says it itself"
    bad = jsonl(tmp_path / "b.jsonl", chat(0.5))
    with pytest.raises(InputError, match=r"messages\[1\]: weight must be 0 \(not learned\) or 1, got 0\.5"):
        read_sft_rows([bad])


def test_folders_patterns_and_packed_files_are_read_in_order(tmp_path):
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    rows = {name: changed(reward_model={"ground_truth": name}) for name in ("a", "b", "c", "d")}
    jsonl(folder / "b.jsonl", rows["b"])
    (folder / "a.jsonl.gz").write_bytes(gzip.compress((json.dumps(rows["a"]) + "\n").encode()))
    pq.write_table(pa.Table.from_pylist([rows["d"]]), folder / "plain.parquet")
    (folder / "more" / "c.parquet.gz").write_bytes(gzip.compress((folder / "plain.parquet").read_bytes()))
    (folder / "README.md").write_text("no data")
    (folder / ".hidden.jsonl").write_text("no data")

    def truths(*paths):
        return [row.ground_truth for row in read_prompt_rows(paths)]

    assert truths(str(folder)) == ["a", "b", "d", "d"]
    assert truths(str(folder / "*.jsonl*"), str(folder / "more")) == ["a", "b", "d"]
    with pytest.raises(InputError, match=r"\*\.json: no file matches"):
        truths(str(folder / "*.json"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="bare: no data file in this folder"):
        truths(str(tmp_path / "bare"))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes((folder / "a.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz: damaged or cut off"):
        truths(str(cut))
    cut.write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"cut\.jsonl\.gz: damaged or cut off"):
        truths(str(cut))


def test_files_of_other_systems(tmp_path):
    line = json.dumps(ROW).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + line)
    read = read_prompt_rows([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert [row.origin[-1] for row in read] == ["1", "3", "2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        (json.dumps(ROW)[:-1] + ', "x": ' + "9" * 5000 + "}", "an integer of 5000 digits"),
        (json.dumps(changed(prompt="\ud800")), "half of a surrogate pair"),
        (json.dumps(changed(extra_info=json.loads("[" * 700 + "]" * 700))), "nested more than 64 deep"),
    ],
)
def test_hostile_rows_are_one_line(tmp_path, text, words):
    path = jsonl(tmp_path / "a.jsonl", ROW, text)
    with pytest.raises(InputError, match=r"row 2: ") as error:
        read_prompt_rows([path])
    assert words in str(error.value) and "\n" not in str(error.value)
    fine = jsonl(tmp_path / "b.jsonl", changed(prompt="a pair: \U0001f600"))
    assert read_prompt_rows([fine])[0].messages[0].content == "a pair: \U0001f600"


def test_a_line_without_end_is_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(json_line, "MAX_ROW_BYTES", 1000)
    path = jsonl(tmp_path / "a.jsonl", ROW, changed(prompt="1" * 2000))
    with pytest.raises(InputError, match="row 2: more than 1000 bytes in one line"):
        read_prompt_rows([path])
