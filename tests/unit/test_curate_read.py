"""Readers of published forms: what becomes of good rows, of golds that do not hold, and of files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prime_megatron.curate.forms_math import without_instruction
from prime_megatron.data.rows import read_prompt_rows
from tests.support.curating import Ran, write_rows

SUM = "a, b = map(int, input().split())\nprint(a + b)"
DIFFERENCE = "a, b = map(int, input().split())\nprint(a - b)"
TESTS = {"inputs": ["1 2\n", "5 5\n"], "outputs": ["3\n", "10\n"]}
PAIR = {"input": ["1 2\n"], "output": ["3\n"]}
EURUS = {
    "data_source": "numina_aops", "ability": "math", "extra_info": {"index": 0, "split": "train"},
    "prompt": [
        {"role": "system", "content": "Think."},
        {"role": "user", "content": "What is 3+4?\n\nPresent it as \\boxed{Your answer}"},
    ],
    "reward_model": {"style": "rule", "ground_truth": "7"},
}  # fmt: skip
GOOD: dict[str, tuple[dict[str, Any], str, str]] = {
    "numina": ({"problem": "3+4?", "solution": "so $\\boxed{7}$", "source": "olympiads"}, "numina_olympiads", "7"),
    "gsm8k": ({"question": "3+997?", "answer": "It is <<3+997=1000>>1000.\n#### 1,000"}, "gsm8k", "1000"),
    "math": ({"problem": "1/2?", "solution": "\\boxed{\\frac12}", "level": "Level 1"}, "math", "\\frac12"),
    "plain": ({"question": "3+4?", "answer": 7.0}, "plain", "7"),
    "eurus": (EURUS, "numina_aops", "7"),
    "apps": (
        {"question": "Add.", "solutions": json.dumps([DIFFERENCE, SUM]), "input_output": json.dumps(TESTS)},
        "apps", json.dumps(TESTS),
    ),
    "taco": (
        {"question": "Add.", "solutions": [SUM], "input_output": json.dumps(TESTS), "picture_num": None},
        "taco", json.dumps(TESTS),
    ),
    "code_contests": (
        {"description": "Add.", "public_tests": PAIR, "solutions": {"language": [2, 3], "solution": ["int", SUM]}},
        "code_contests", json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]}),
    ),
    "codeforces": (
        {"problem-description": "Add.", "input-specification": "Two.", "demo-input": ["1 2"], "demo-output": ["3"],
         "test_cases": [{"input": "2 2", "output": "4"}], "code": SUM,
         "programmingLanguage": "Python 3", "verdict": "OK"},
        "codeforces", json.dumps({"inputs": ["2 2"], "outputs": ["4"]}),
    ),
}  # fmt: skip
QUESTION = {"numina": "problem", "math": "problem", "code_contests": "description", "codeforces": "problem-description"}
CODE = ("apps", "taco", "code_contests", "codeforces")


@pytest.fixture(scope="module", autouse=True)
def proven_once() -> Any:
    """The jail is attacked by tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prime_megatron.cli.curate_texts.prove_jail", lambda config: None)
        yield


@pytest.mark.parametrize("form", GOOD)
def test_a_published_row_becomes_one_of_ours(form: str, tmp_path: Path) -> None:
    row, source, truth = GOOD[form]
    ran = Ran("read", [write_rows(tmp_path / "in.jsonl", [row])], tmp_path / "out.jsonl", "--form", form, "--name", "x")
    (kept,) = ran.kept
    assert (kept["id"], kept["data_source"], kept["reward_model"]["ground_truth"]) == ("x-0000000", source, truth)
    assert ran.report["rules"] == {}
    (prompt,) = read_prompt_rows([str(ran.output)])
    assert prompt.ground_truth == truth and kept["problem"].split("\n")[0] in prompt.messages[-1].content
    if form == "eurus":
        assert kept["problem"] == "What is 3+4?" and kept["extra_info"] == EURUS["extra_info"]
        assert len(kept["prompt"]) == 2
    if form == "codeforces":
        assert kept["problem"] == "Add.\n\nInput\nTwo.\n\nExample 1\nInput:\n1 2\nOutput:\n3"


def test_instructions_are_no_part_of_the_problem() -> None:
    code = "Add.\n\nInput\na b\n\nWrite a program. Show it as\n```python\nYour code\n```\nat the end."
    assert without_instruction(code) == "Add.\n\nInput\na b"
    assert without_instruction("One.\nTwo.\n\nEnd with \\boxed{}.") == "One.\nTwo."
    assert without_instruction("What is 2+2?\nSay it.") == "What is 2+2?\nSay it."


def test_golds_that_do_not_hold_are_dropped_and_counted(tmp_path: Path) -> None:
    solutions = {
        "fine": "\\boxed{7}", "no_box": "seven", "unclosed_box": "\\boxed{7", "empty_box": "\\boxed{ }",
        "bad_truth": "\\boxed{\\text{see the figure}}",
    }  # fmt: skip
    rows = [{"problem": name, "solution": text, "source": "s"} for name, text in solutions.items()]
    rows.append({"problem": " ", "solution": "\\boxed{7}", "source": None})
    ran = Ran("read", [write_rows(tmp_path / "in.jsonl", rows)], tmp_path / "out.jsonl", "--form", "numina")
    assert [row["problem"] for row in ran.kept] == ["fine"]
    dropped = {row["problem"]: row["dropped"]["rule"] for row in ran.dropped}
    assert dropped == {name: name for name in solutions if name != "fine"} | {"": "no_problem"}

    rows = [
        {"problem": "a", "answer": "8", "solution": "so \\boxed{7}"},
        {"problem": "b", "answer": None, "solution": ""},
        {"problem": "c", "answer": "nan"},
        {"problem": "d", "answer": "7", "solution": "so \\boxed{7.0}"},
    ]
    path = write_rows(tmp_path / "plain.jsonl", rows)
    ran = Ran("read", [path], tmp_path / "plain_out.jsonl", "--form", "plain")
    assert [row["problem"] for row in ran.kept] == ["d"]
    assert ran.report["dropped"] == {"solution_disagrees": 1, "no_truth": 1, "bad_truth": 1}
    free = Ran("read", [path], tmp_path / "free.jsonl", "--form", "plain", "read.without_truth=keep")
    assert [row["problem"] for row in free.kept] == ["b", "d"] and free.kept[0]["reward_model"] is None


def test_a_program_that_fails_its_own_tests_is_dropped(tmp_path: Path) -> None:
    def row(*programs: str, tests: Any = TESTS) -> dict[str, Any]:
        return {"question": "Add.", "solutions": json.dumps(programs), "input_output": json.dumps(tests)}

    rows = [row(DIFFERENCE), row(DIFFERENCE, SUM), row(), row(SUM, tests={"inputs": [], "outputs": []})]
    path = write_rows(tmp_path / "in.jsonl", rows)
    ran = Ran("read", [path], tmp_path / "out.jsonl", "--form", "apps")
    assert ran.why() == {"apps-0000000": "solution_fails", "apps-0000003": "no_tests"}
    assert ran.report["rules"]["unproven_tests"]["count"] == 1
    strict = Ran("read", [path], tmp_path / "s.jsonl", "--form", "apps", "read.without_solution=drop")
    assert strict.why()["apps-0000002"] == "no_solution"


@pytest.mark.parametrize("form", GOOD)
@pytest.mark.parametrize("fault", ["truncated", "wrong column", "mixed types", "empty"])
def test_bad_files_are_one_line_and_nothing_is_written(
    form: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row, _, _ = GOOD[form]
    name = QUESTION.get(form, "prompt" if form == "eurus" else "question")
    path = write_rows(tmp_path / "in.jsonl", [row, row])
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif fault == "wrong column":
        write_rows(path, [row, {"other" if key == name else key: value for key, value in row.items()}])
    elif fault == "mixed types":
        write_rows(path, [row, row | {name: 7}])
    else:
        path.write_text("")
    assert Ran("read", [path], tmp_path / "out.jsonl", "--form", form).code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(f"error: {path}")
    assert fault == "empty" or ", row 2: " in told
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


def test_damaged_and_odd_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "in.parquet"
    pq.write_table(pa.table({"question": ["3+4?"] * 500, "answer": ["7"] * 500}), table)
    table.write_bytes(table.read_bytes()[:-30])
    column = tmp_path / "columns.json"
    column.write_text('{"question": {"0": "3+4?"}, "answer": {"0": 7, "1": 8}}')
    for path in (table, column, tmp_path / "gone.jsonl", tmp_path):
        assert Ran("read", [path], tmp_path / "out.jsonl", "--form", "plain").code == 2
        assert capsys.readouterr().err.count("\n") == 1
    column.write_text('{"question": {"0": "3+4?", "4": "1+1?"}, "answer": {"0": 7, "4": 2}}')
    assert len(Ran("read", [column], tmp_path / "out.jsonl", "--form", "plain").kept) == 2
    assert Ran("read", [column], tmp_path / "out.jsonl", "--form", "plain").code == 2, "it would be replaced"
    assert Ran("read", [tmp_path / "out.jsonl"], tmp_path / "out.jsonl", "--form", "plain", "--overwrite").code == 2
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
