import argparse
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.cli import verify as cli
from prime_megatron.errors import InputError
from prime_megatron.verify import Answer, Verdict, Verifiers

GOOD = {"ability": "exact", "response": "<answer>7</answer>", "ground_truth": "7"}


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="prime-megatron")
    cli.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["verify", *map(str, arguments)])
    return args.run(args)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_come_out_scored_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"ability": "math", "response": "\\boxed{b+a}", "ground_truth": "a+b", "uid": 1},  # needs a process
        {**GOOD, "uid": 2, "note": "\u4e09 \ud800"},
        {"ability": "math", "response": "\\boxed{41}", "ground_truth": "#### 42", "uid": 3, "score": "an old one"},
        {"ability": "math", "response": "no idea", "ground_truth": "42", "uid": 4},
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert run(source, "--output", out, "--workers", "1", "--timeout-s", "60") == 0
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["uid"] for row in scored] == [1, 2, 3, 4]
    assert [row["score"] for row in scored] == [1.0, 1.0, 0.0, 0.0]
    assert [row["verdict"] for row in scored] == ["correct", "correct", "wrong", "no_answer"]
    for row, result in zip(rows, scored, strict=True):
        assert result == {**row, **{key: result[key] for key in ("score", "verdict", "reason")}}
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "4 rows" in captured.out
    assert "2 correct, 1 wrong, 1 no_answer; mean score 0.5000" in captured.out
    assert "in.jsonl" in captured.err  # progress goes to stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_empty_file_and_blank_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("")
    assert run(source, "--output", out) == 0
    assert out.read_text() == ""
    assert "no rows" in capsys.readouterr().out
    source.write_text("\ufeff" + json.dumps(GOOD) + "\n\n  \n" + json.dumps(GOOD))
    assert run(source, "--output", out, "--overwrite") == 0
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "in.jsonl, row 2: not JSON"),
        ('{"ability": NaN}', "in.jsonl, row 2: not JSON (NaN is not a JSON number)"),
        ("[" * 100_000, "in.jsonl, row 2: not JSON"),
        ("9" * 10_000, "in.jsonl, row 2: not JSON"),
        ("[1]", "in.jsonl, row 2: a list, not an object with the keys ability, response, ground_truth"),
        ('{"ability": "exact", "response": "x"}', "in.jsonl, row 2: no key 'ground_truth'"),
        ('{"response": "x", "ground_truth": "x"}', "in.jsonl, row 2: no key 'ability'"),
        (json.dumps({**GOOD, "response": 7}), "in.jsonl, row 2: 'response' is a int, not a string"),
        (
            json.dumps({**GOOD, "ground_truth": {"a": 7}}),
            "in.jsonl, row 2: 'ground_truth' is a dict, not a string, a number or a list of these",
        ),
        (json.dumps({**GOOD, "ground_truth": []}), "row 2: 'ground_truth' is a list, not a string, a number or a list"),
        (json.dumps({**GOOD, "response": None}), "in.jsonl, row 2: 'response' is a NoneType, not a string"),
        (json.dumps({**GOOD, "ability": "mth"}), "in.jsonl, row 2: unknown ability 'mth'"),
        (json.dumps({**GOOD, "ability": "code"}), "in.jsonl, row 2: ground_truth: it must be a JSON object"),
        ("\udcff", "in.jsonl, row 2: not UTF-8"),
    ],
)
def test_a_bad_row_is_named_and_leaves_nothing(tmp_path: Path, line: str, message: str) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(json.dumps(GOOD).encode() + b"\n" + line.encode("utf-8", "surrogateescape") + b"\n")
    out.write_text("kept")
    with pytest.raises(InputError) as caught:
        run(source, "--output", out, "--overwrite")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_bad_arguments(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", [GOOD]), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"missing\.jsonl: no such file"):
        run(tmp_path / "missing.jsonl", "--output", out)
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path, "--output", out)
    with pytest.raises(InputError, match="no such folder for the output"):
        run(source, "--output", tmp_path / "none" / "out.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        run(source, "--output", tmp_path, "--overwrite")
    with pytest.raises(InputError, match="num_workers is 0"):
        run(source, "--output", out, "--workers", "0")
    with pytest.raises(InputError, match="timeout_s"):
        run(source, "--output", out, "--timeout-s", "-1")
    assert not out.exists()
    out.write_text("kept")
    with pytest.raises(InputError, match="exists; give --overwrite"):
        run(source, "--output", out)
    assert out.read_text() == "kept"
    assert run(source, "--output", out, "--overwrite") == 0
    assert json.loads(out.read_text())["score"] == 1.0
    assert run(out, "--output", out, "--overwrite") == 0  # onto itself
    assert json.loads(out.read_text())["score"] == 1.0


def test_any_failure_leaves_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    def interrupted() -> None:
        with cli.whole_file(path) as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_rows_in_flight_are_bounded() -> None:
    read = 0

    class Slow:
        def __init__(self) -> None:
            self.futures: list[Future[Verdict]] = []

        def submit(self, answer: Answer) -> "Future[Verdict]":
            self.futures.append(Future())
            if len(self.futures) - sum(future.done() for future in self.futures) >= cli.WINDOW:
                for future in self.futures:  # the window is full: let the oldest go
                    if not future.done():
                        future.set_result(Verdict(1.0, "correct", ""))
                        break
            return self.futures[-1]

        def truth_problem(self, ground_truth: str) -> None:
            return None

        def close(self) -> None:
            for future in self.futures:
                if not future.done():
                    future.set_result(Verdict(1.0, "correct", ""))

    def lines() -> Iterator[tuple[int, bytes]]:
        nonlocal read
        for read in range(1, cli.WINDOW + 200):
            yield read, json.dumps({**GOOD, "ability": "slow", "uid": read}).encode()
        slow.close()

    slow = Slow()
    seen = []
    with Verifiers({"slow": slow}) as verifiers:
        for row, _ in cli.scored_rows(lines(), "in.jsonl", verifiers):
            seen.append(row["uid"])
            assert read - len(seen) < cli.WINDOW
    assert seen == list(range(1, cli.WINDOW + 200))


def test_several_truths_and_numbers_as_truth(tmp_path: Path) -> None:
    truths = [["5", 7, 2.5], 7, 2.5, [8, "9"], " "]
    rows = [
        {"ability": "math", "response": r, "ground_truth": t} for t in truths for r in ("\\boxed{7}", "\\boxed{5/2}")
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run(source, "--output", out)
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["ground_truth"] for row in scored] == [row["ground_truth"] for row in rows]
    assert [row["score"] for row in scored] == [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert [row["verdict"] for row in scored[-2:]] == ["error", "error"]
    assert scored[-1]["reason"] == "the ground truth is empty"
