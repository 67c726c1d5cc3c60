"""Samples, questions, tables and blocks on disk: what is written is read back, what is wrong is one line."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prime_megatron.data.messages import Message
from prime_megatron.errors import InputError
from prime_megatron.generate.blocks import open_blocks
from prime_megatron.generate.questions import digest_of, read_questions, stream_of
from prime_megatron.generate.run import Progress, answer_blocks, in_blocks
from prime_megatron.generate.sample import GeneratedSample, format_sample, read_samples
from prime_megatron.generate.tables import read_table

CHAT = (Message("system", "s"), Message("user", "a\u2028b \ud800"))
FULL = GeneratedSample(
    id="q/1", sample=2, prompt=CHAT, response="r\u0085\ud834", truncated=True, prompt_ids=(1, 2), response_ids=(3,),
    logprobs=(-0.125,), data_source="d", ability="math", ground_truth="7", outcome=0.5, verdict="wrong", reason="no",
)  # fmt: skip
BARE = GeneratedSample(id="0", sample=0, prompt="text", response="", truncated=False)


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes("".join(format_sample(one) for one in (FULL, BARE)).encode())
    assert read_samples(path) == [FULL, BARE]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert set(json.loads(format_sample(BARE))) == {"id", "sample", "prompt", "response", "truncated"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": 3}, "row 1: id must be"),
        ({"sample": -1}, "row 1: sample must be a whole number"),
        ({"sample": True}, "row 1: sample must be a whole number"),
        ({"response": None}, "row 1: response must be"),
        ({"outcome": 2}, "row 1: outcome must be a number in [0, 1]"),
        ({"response_ids": [1.5]}, "row 1: response_ids must be a list of whole numbers"),
        ({"logprobs": ["x"]}, "row 1: logprobs must be a list of numbers"),
        ({"prompt": [{"role": "user"}]}, "row 1: prompt[0]"),
    ],
)
def test_a_row_that_is_no_sample_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps({"id": "0", "sample": 0, "response": "r"} | change) + "\n")
    with pytest.raises(InputError) as refused:
        read_samples(path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_same_sample_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text((json.dumps({"id": "0", "sample": 0, "response": "r"}) + "\n") * 2)
    with pytest.raises(InputError, match="row 2: id '0' has sample 0 already in row 1"):
        read_samples(path)


ROWS = [{"problem": "1+1", "answer": 2}, {"problem": "2+2", "answer": 4}]


def columns() -> dict[str, dict[str, Any]]:
    return {key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ("problem", "answer")}


def test_tables_of_every_published_form(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    (tmp_path / "c.json").write_text(json.dumps(columns()))
    (tmp_path / "d.json").write_text(lines)  # lines, though the name says otherwise
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    for path in sorted(tmp_path.iterdir()):
        table = read_table(path)
        assert [row for _, row in table] == ROWS, path
        assert table[1][0] == f"{path}, row 2"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.txt", b"{}", "unknown kind"),
        ("a.jsonl", b"{}\n[1]\n", "row 2: a row must be a JSON object"),
        ("a.jsonl", b"{}\n{\n", "row 2: not JSON"),
        ("a.jsonl", b"\xff\xfe", "not UTF-8"),
        ("a.json", b'{"a": {"0": 1}, "b": {"1": 2}}', "neither a list of rows nor columns"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.parquet", b"no parquet", "not a readable parquet file"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_table(tmp_path / name)
    assert said in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)
    assert "\n" not in str(refused.value)


def ask(tmp_path: Path, rows: list[Any]) -> list[Any]:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions([str(path)], "be brief")


def test_questions_of_rows_with_a_prompt(tmp_path: Path) -> None:
    user = {"role": "user", "content": "hi"}
    rows: list[Any] = [
        {"prompt": "plain", "id": 7},
        {"prompt": [user], "ability": "math", "reward_model": {"ground_truth": "3"}, "data_source": "d"},
        {"prompt": [{"role": "system", "content": "own"}, user], "ground_truth": "4"},
    ]
    one, two, three = ask(tmp_path, rows)
    assert one.id == "7"
    assert one.prompt == (Message("system", "be brief"), Message("user", "plain"))
    assert (two.id, two.ability, two.ground_truth, two.data_source) == ("1", "math", "3", "d")
    assert three.prompt[0] == Message("system", "own")
    assert three.ground_truth == "4"
    assert digest_of([one, two]) != digest_of([one, three])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "row 2: prompt is missing"),
        ({"prompt": ""}, "row 2: the prompt is empty"),
        ({"prompt": [{"role": "bot", "content": "x"}]}, "row 2: prompt[0] has the unknown role"),
        ({"prompt": [{"role": "assistant", "content": "x"}]}, "row 2: prompt ends with a message of assistant"),
        ({"prompt": "x", "id": "0"}, "row 2: id '0' is that of"),
        ({"prompt": "x", "id": [1]}, "row 2: id must be text or a whole number"),
    ],
)
def test_a_wrong_question_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        ask(tmp_path, [{"prompt": "first"}, row])
    assert said in str(refused.value)


def test_random_streams_are_named_by_the_question_alone() -> None:
    assert stream_of("a") == stream_of("a")
    assert 0 <= stream_of("a") < 2**63
    assert len({stream_of(str(n)) for n in range(1000)}) == 1000


class Counting:
    """Answers, and dies at one question."""

    def __init__(self, dies_at: str | None = None) -> None:
        self.asked: list[str] = []
        self.dies_at = dies_at

    def answer(self, questions: Any) -> list[GeneratedSample]:
        samples = []
        for question in questions:
            if question.id == self.dies_at:
                raise KeyboardInterrupt
            self.asked.append(question.id)
            samples.append(GeneratedSample(question.id, 0, question.prompt, f"to {question.id}", False))
        return samples


def test_an_interrupted_request_asks_only_what_is_missing(tmp_path: Path) -> None:
    questions = ask(tmp_path, [{"prompt": str(n)} for n in range(7)])
    by_block = in_blocks(questions, 2, 5)
    assert [len(block) for block in by_block] == [2, 2, 2, 1]
    told: list[Progress] = []
    first = Counting(dies_at="5")
    with pytest.raises(KeyboardInterrupt), open_blocks(tmp_path / "kept", {"n": 2}) as blocks:
        answer_blocks(blocks, by_block, first, told.append)
    assert first.asked == ["0", "1", "2", "3", "4"]  # the block of 4 and 5 was cut
    (tmp_path / "kept" / ".block-000002.jsonl.9.tmp").write_text("half a bl")
    second = Counting()
    with open_blocks(tmp_path / "kept", {"n": 2}) as blocks:
        answer_blocks(blocks, by_block, second, told.append)
        blocks.join(4, tmp_path / "out.jsonl")
    assert second.asked == ["4", "5", "6"]
    assert [sample.id for sample in read_samples(tmp_path / "out.jsonl")] == [str(n) for n in range(7)]
    assert [(one.done, one.num_blocks) for one in told] == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1].left_s == 0.0
    assert not list((tmp_path / "kept").glob(".*"))


def test_blocks_of_another_request_are_not_mixed(tmp_path: Path) -> None:
    with open_blocks(tmp_path / "kept", {"n": 2, "seed": 0}):
        pass
    with pytest.raises(InputError, match="its seed is another"), open_blocks(tmp_path / "kept", {"n": 2, "seed": 1}):
        pass


def test_two_processes_do_not_work_on_one_request(tmp_path: Path) -> None:
    with open_blocks(tmp_path / "kept", {}):
        child = os.fork()
        if child == 0:
            try:
                with open_blocks(tmp_path / "kept", {}):
                    os._exit(1)
            except InputError as refused:
                os._exit(0 if "another process" in str(refused) else 2)
        assert os.waitpid(child, 0)[1] == 0
