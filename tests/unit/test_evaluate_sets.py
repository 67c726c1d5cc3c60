"""Published files as questions: forms, counts, hashes, wording; and the graders on real solutions with labels.

Reads the data beside the repository; what needs it is skipped, loudly, where it is absent.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import pickle
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.config import CodeConfig
from prime_megatron.data.messages import Message
from prime_megatron.errors import InputError
from prime_megatron.evaluate.given import GivenAnswerer, given_responses
from prime_megatron.evaluate.grading import SetGrader
from prime_megatron.evaluate.item import Item, fenced
from prime_megatron.evaluate.sets import read_set
from prime_megatron.evaluate.suite import SetConfig
from prime_megatron.generate.sample import GeneratedSample, format_sample
from prime_megatron.verify import Verifiers, VerifyOptions, build_verifiers
from prime_megatron.verify.code.check import refusal
from prime_megatron.verify.math import final_ground_truth

DATA = Path(__file__).parents[3] / "shared" / "data"
OPTIONS = VerifyOptions(num_workers=2, timeout_s=60.0, code=CodeConfig(timeout_s=20.0, sample_timeout_s=60.0))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no published sets: {DATA} is absent")
needs_jail = pytest.mark.skipif(refusal(CodeConfig()) is not None, reason="this kernel cannot hold programs")


@pytest.fixture(scope="module")
def verifiers() -> Iterator[Verifiers]:
    with build_verifiers(OPTIONS) as built:
        yield built


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(tmp_path: Path, given: list[dict[str, Any]], **keys: Any) -> list[Item]:
    write(tmp_path / "set.jsonl", given)
    return read_set("s", SetConfig(file="set.jsonl", **keys), str(tmp_path))


def grade(config: SetConfig, items: list[Item], responses: dict[str, list[str]], verifiers: Verifiers) -> list[str]:
    answerer = GivenAnswerer(responses, SetGrader(config, items), verifiers)
    return [str(sample.verdict) for sample in answerer.answer([item.question for item in items])]


ROWS = [
    {"question": "a", "answer": 142.0, "url": "2023_x"},
    {"question": "b", "answer": ["$2n$"], "url": "2024_x"},
    {"question": "c", "answer": "steps #### 7", "url": "2024_y"},
    {"question": "d", "answer": "so \\boxed{9}", "url": "2024_z"},
]


def test_a_set_is_cut_counted_and_worded(tmp_path: Path) -> None:
    (tmp_path / "system.md").write_text("one\\ntwo")
    keys: dict[str, Any] = {"rows": 4, "kept": 3, "keep": {"url": "^2024"}, "limit": 2, "prompt": "Q: {question}"}
    items = read(tmp_path, ROWS, system_file="system.md", system_newlines="decoded", **keys)
    assert [item.question.id for item in items] == ["1", "2"]
    assert items[0].question.prompt == (Message("system", "one\ntwo"), Message("user", "Q: b"))
    assert [item.question.ground_truth for item in read(tmp_path, ROWS)] == [
        "142",
        "$2n$",
        ROWS[2]["answer"],
        ROWS[3]["answer"],
    ]
    written = read(tmp_path, ROWS, system_file="system.md")
    assert written[0].question.prompt[0] == Message("system", "one\\ntwo")
    assert read(tmp_path, ROWS, chat=False)[0].question.prompt == "a"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rows": 5}, "4 rows, the suite knows 5"),
        ({"kept": 2, "keep": {"url": "2024"}}, "3 rows left by keep and the dates, the suite knows 2"),
        ({"keep": {"url": "1999"}}, "no row is left"),
        ({"keep": {"link": "x"}}, "row 1: no column link"),
        ({"sha256": "0" * 64}, "another file than the suite's"),
        ({"question": "problem"}, "row 1: no column problem; the row has question, answer, url"),
        ({"system_file": "none.md"}, "none.md: no system prompt to read there"),
        ({"id": "url"}, None),
        ({"form": "humaneval"}, "row 1: prompt is missing"),
        ({"form": "prompts"}, "row 1: prompt is missing"),
    ],
)
def test_a_set_that_is_another_is_refused_in_one_line(tmp_path: Path, keys: dict[str, Any], said: str | None) -> None:
    if said is None:
        assert [item.question.id for item in read(tmp_path, ROWS, **keys)][0] == "2023_x"
        return
    with pytest.raises(InputError) as refused:
        read(tmp_path, ROWS, **keys)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_says_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.jsonl: no such file; it comes from example\.org/x"):
        read_set("s", SetConfig(file="gone.jsonl", comes_from="example.org/x"), str(tmp_path))


def test_the_hash_that_is_known_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "set.jsonl", ROWS)
    digest = hashlib.sha256((tmp_path / "set.jsonl").read_bytes()).hexdigest()
    assert len(read(tmp_path, ROWS, sha256=digest)) == 4


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 2: id 'same' is that of"):
        read(tmp_path, [ROWS[0] | {"k": "same"}, ROWS[1] | {"k": "same"}], id="k")


def pattern_verdicts(tmp_path: Path, verifiers: Verifiers, responses: list[str], **keys: Any) -> list[str]:
    items = read(tmp_path, [{"question": "q", "answer": "26"}], **keys)
    config = SetConfig(file="set.jsonl", **keys)
    return grade(config, items, {"0": responses}, verifiers)


def test_an_answer_pattern_reads_the_last_match(tmp_path: Path, verifiers: Verifiers) -> None:
    responses = ["A: 25\nA: 26", "A: 26\nA: 25", "\\boxed{26}", "A: ", "it is 26"]
    for grader in ("math", "exact"):
        found = pattern_verdicts(tmp_path, verifiers, responses, answer_pattern=r"A: *(.*)", grader=grader)
        assert found == ["correct", "wrong", "no_answer", "no_answer", "no_answer"], grader
    assert pattern_verdicts(tmp_path, verifiers, responses)[2] == "correct"


HUMANEVAL = {
    "task_id": "H/0",
    "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\ndef root(x: float) -> float:\n    """Root."""\n',
    "canonical_solution": "    return math.sqrt(half(x) * 2)\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n    assert candidate(9) == 3\n",
    "entry_point": "root",
}


@needs_jail
def test_humaneval_takes_whole_functions_and_bodies(tmp_path: Path, verifiers: Verifiers) -> None:
    items = read(tmp_path, [HUMANEVAL], form="humaneval")
    assert (items[0].question.data_source, items[0].question.other_truths) == ("s", ())
    fence = "```python\n{}\n```"
    responses = [
        str(items[0].canonical),
        fence.format(
            "def root(x):\n    return math.sqrt(half(x) + half(x))"
        ),  # its imports and helper are the prompt's
        fence.format("    return math.sqrt(x)"),  # a body alone continues the prompt
        fence.format("from __future__ import annotations\nimport math\ndef root(x):\n    return math.sqrt(x)"),
        fence.format("def root(x):\n    return 2"),
        "no program",
    ]
    verdicts = grade(SetConfig(file="set.jsonl", form="humaneval"), items, {"H/0": responses}, verifiers)
    assert verdicts == ["correct", "correct", "correct", "correct", "wrong", "no_code"]


LEETCODE = {
    "task_id": "double",
    "prompt_sft": "Double every value.\n```python\nclass Solution:\n    def double(self, nums, k): ...\n```",
    "test": (
        '\nmy_solution = Solution()\n\ntest_input = { "nums": [1, 2], "k": -1 }\n'
        "assert my_solution.double(**test_input) == [2, 4]\n"
    ),
}
LISTS = {
    "task_id": "reverse",
    "prompt_sft": "Reverse the list.",
    "test": (
        "\nmy_solution = Solution()\n_f1 = lambda lst: ListNode(lst[0], _f1(lst[1:])) if lst else None\n"
        "_f2 = lambda node: [node.val] + _f2(node.next) if node else []\n"
        'test_input = { "head": _f1([1,8,9]) }\nassert _f2(my_solution.turn(**test_input)) == [9,8,1]\n'
    ),
}


@needs_jail
def test_leetcode_calls_by_name_and_with_linked_lists(tmp_path: Path, verifiers: Verifiers) -> None:
    items = read(tmp_path, [LEETCODE, LISTS], form="leetcode")
    assert json.loads(items[0].question.ground_truth) == {
        "inputs": [[[1, 2], -1]], "outputs": [[2, 4]], "fn_name": "double",
    }  # fmt: skip
    double = "class Solution:\n    def double(self, nums: List[int], k):\n        return [n + n for n in nums]\n"
    turn = (
        "```python\nclass Solution:\n    def turn(self, head: Optional[ListNode]):\n        back = None\n"
        "        while head:\n            head.next, back, head = back, head, head.next\n        return back\n```"
    )
    config = SetConfig(file="set.jsonl", form="leetcode")
    assert grade(config, items, {"double": [fenced(double)], "reverse": [turn]}, verifiers) == ["correct", "correct"]
    assert (
        grade(config, items, {"double": [turn], "reverse": [turn.replace("return back", "return None")]}, verifiers)[1]
        == "wrong"
    )


def lcb(number: int, day: str, tests: list[dict[str, str]], hidden: str, name: str | None = None) -> dict[str, Any]:
    return {
        "question_id": f"p{number}",
        "question_content": "Add.",
        "contest_date": f"{day}T00:00:00",
        "starter_code": "class Solution:\n    def add(self, a, b):" if name else "",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": hidden,
        "metadata": json.dumps({"func_name": name} if name else {}),
    }


def packed(value: Any) -> str:
    """As LiveCodeBench publishes hidden tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(value)))).decode()


SCRIPT = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
CALL = [{"input": "1\n2", "output": "3", "testtype": "functional"}]


@needs_jail
def test_livecodebench_reads_packed_tests_within_its_window(tmp_path: Path, verifiers: Verifiers) -> None:
    rows = [
        lcb(0, "2023-04-30", SCRIPT, ""),
        lcb(1, "2023-05-01", SCRIPT, packed([{"input": "5 6\n", "output": "11\n"}])),
        lcb(2, "2024-05-31", CALL, json.dumps([{"input": "4\n5", "output": "9"}]), "add"),
        lcb(3, "2024-06-01", SCRIPT, ""),
    ]
    keys: dict[str, Any] = {"form": "livecodebench", "first_date": "2023-05-01", "last_date": "2024-05-31", "kept": 2}
    items = read(tmp_path, rows, **keys)
    assert [item.question.id for item in items] == ["p1", "p2"]
    assert json.loads(items[0].question.ground_truth)["inputs"] == ["1 2\n", "5 6\n"]
    script = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"
    method = (
        "```python\nclass Solution:\n    def add(self, a: int, b: Optional[int]) -> int:\n        return a + b\n```"
    )
    config = SetConfig(file="set.jsonl", **keys)
    assert grade(config, items, {"p1": [script], "p2": [method]}, verifiers) == ["correct", "correct"]


def test_a_pickle_of_anything_but_a_text_is_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    trap = base64.b64encode(zlib.compress(pickle.dumps(Trap()))).decode()
    with pytest.raises(InputError, match="row 1: private_test_cases is neither JSON nor its packed form"):
        read(tmp_path, [lcb(0, "2024-01-01", SCRIPT, trap)], form="livecodebench")
    assert not (tmp_path / "ran").exists()


def test_given_responses_must_be_those_of_the_set(tmp_path: Path) -> None:
    items = read(tmp_path, ROWS)
    path = tmp_path / "given.jsonl"

    def given(*samples: tuple[str, int]) -> Any:
        rows = [GeneratedSample(name, number, "", "r", False) for name, number in samples]
        path.write_text("".join(format_sample(row) for row in rows))
        return given_responses(str(path), "s", items, 1)

    whole = [(str(n), k) for n in range(4) for k in range(2)]
    assert given(*whole) == {str(n): ["r", "r"] for n in range(4)}
    for samples, said in (
        ([*whole, ("9", 0)], "id '9' is no question of set s"),
        (whole[:-2], "no response to question '3' of set s"),
        (whole[:-1], "have 1 to 2 responses"),
    ):
        with pytest.raises(InputError, match=said):
            given(*samples)
    with pytest.raises(InputError, match="one file for 2 sets"):
        given_responses(str(path), "s", items, 2)
    with pytest.raises(InputError, match="its rows have no solutions"):
        given_responses("canonical", "s", [Item(items[0].question)], 1)


GSM8K = SetConfig(file="math/gsm8k_test.jsonl", rows=1319, solution="answer")
MATH500 = SetConfig(
    file="math/math500.json", rows=500, question="problem", answer="expected_answer", solution="solution", id="id"
)


@needs_data
@pytest.mark.parametrize("config", [GSM8K, MATH500], ids=["gsm8k", "math500"])
def test_own_solutions_are_right_and_those_dealt_to_others_are_not(config: SetConfig, verifiers: Verifiers) -> None:
    items = read_set("s", config, str(DATA))
    own = given_responses("canonical", "s", items, 1)
    assert own is not None
    assert Counter(grade(config, items, own, verifiers)) == {"correct": len(items)}
    dealt = given_responses("dealt", "s", items, 1)
    assert dealt is not None
    limit = len(items) if config is GSM8K else 150  # the others mostly cost a computation each
    verdicts = grade(config, items[:limit], dealt, verifiers)
    truths = [final_ground_truth(item.question.ground_truth) for item in items]
    equal = sum(truths[place] == truths[(place + 1) % len(items)] for place in range(limit)) / limit
    assert verdicts.count("correct") / limit <= equal + 0.005


@needs_data
def test_labelled_solutions_of_gsm8k_through_a_pattern(tmp_path: Path, verifiers: Verifiers) -> None:
    """1,319 questions, four solutions each that end in "A: 26": 5,276 of 5,276 labels."""
    config = SetConfig(file="gsm8k.jsonl", question="question", answer="truth", answer_pattern=r"A:(.*)")
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    lines = (DATA / "model_answers" / "gsm8k_example_model_solutions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    write(
        tmp_path / "gsm8k.jsonl",
        [{"question": row["question"], "truth": row["ground_truth"].rpartition("A:")[2]} for row in rows],
    )
    items = read_set("s", config, str(tmp_path))
    responses = {str(n): [row[model]["solution"] for model in models] for n, row in enumerate(rows)}
    verdicts = grade(config, items, responses, verifiers)
    labels = [row[model]["is_correct"] for row in rows for model in models]
    assert len(labels) == 5276
    assert [verdict == "correct" for verdict in verdicts] == labels


@needs_data
@needs_jail
@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SetConfig(file="code/HumanEval.jsonl.gz", rows=164, form="humaneval", limit=40), 40),
        (SetConfig(file="code/mbpp_sanitized.json", rows=399, form="mbpp", limit=40), 40),
    ],
    ids=["humaneval", "mbpp"],
)
def test_own_programs_are_right(config: SetConfig, count: int, verifiers: Verifiers) -> None:
    items = read_set("s", config, str(DATA))
    own = given_responses("canonical", "s", items, 1)
    assert own is not None
    assert grade(config, items, own, verifiers) == ["correct"] * count
    dealt = given_responses("dealt", "s", items, 1)
    assert dealt is not None
    assert "correct" not in grade(config, items, dealt, verifiers)


@needs_data
def test_a_gzipped_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode()))
    digest = hashlib.sha256((tmp_path / "a.jsonl.gz").read_bytes()).hexdigest()
    assert len(read_set("s", SetConfig(file="a.jsonl.gz", sha256=digest), str(tmp_path))) == 1
