"""HumanEval, MBPP and programs of our own: canonical solutions score 1, mutated ones less wherever a test tells."""

from __future__ import annotations

import ast
import gzip
import json
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from prime_megatron.config import CodeConfig
from prime_megatron.verify import Answer, Verdict
from prime_megatron.verify.code.check import refusal
from prime_megatron.verify.code.verifier import CodeVerifier

pytestmark = pytest.mark.skipif(
    refusal(CodeConfig()) is not None, reason="this kernel cannot hold programs: no Landlock, or no seccomp"
)
CODE = Path(__file__).resolve().parents[3] / "shared" / "data" / "code"
NUM_MUTANTS = 60


@dataclass(frozen=True)
class Task:
    """A right program, the ground truth as our rows have it, and the same tests as plain Python."""

    name: str
    code: str
    ground_truth: str
    plain: str


def human_eval() -> list[Task]:
    with gzip.open(CODE / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        Task(
            row["task_id"],
            row["prompt"] + row["canonical_solution"],
            json.dumps({"test": row["test"], "entry_point": row["entry_point"]}),
            f"{row['test']}\ncheck({row['entry_point']})\n",
        )
        for row in rows
    ]


def mbpp() -> list[Task]:
    rows = json.loads((CODE / "mbpp_sanitized.json").read_text(encoding="utf-8"))
    return [
        Task(
            f"MBPP/{row['task_id']}",
            row["code"],
            json.dumps({"test_list": row["test_list"], "test_imports": row["test_imports"]}),
            "\n".join([*row["test_imports"], *row["test_list"]]),
        )
        for row in rows
    ]


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    # One task of MBPP takes seconds by itself.
    verifier = CodeVerifier(2, CodeConfig(timeout_s=60.0, sample_timeout_s=200.0))
    yield verifier
    verifier.close()


def scored(verifier: CodeVerifier, code: str, ground_truth: str) -> Future[Verdict]:
    return verifier.submit(Answer("code", f"```python\n{code}\n```", ground_truth))


@pytest.mark.skipif(not CODE.is_dir(), reason="no shared data beside the project")
@pytest.mark.parametrize(("read", "count"), [(human_eval, 164), (mbpp, 399)])
def test_canonical_solutions_score_1(read, count: int, verifier: CodeVerifier) -> None:
    tasks = read()
    assert len(tasks) == count
    futures = [(task, scored(verifier, task.code, task.ground_truth)) for task in tasks]
    wrong = {task.name: future.result(timeout=280) for task, future in futures if future.result(timeout=280).score != 1}
    assert wrong == {}


class Mutate(ast.NodeTransformer):
    """Changes one place: an operator, a comparison or a constant."""

    SWAPS: ClassVar = {
        ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
        ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    }  # fmt: skip

    def __init__(self, place: int) -> None:
        self.place = place
        self.seen = 0

    def here(self) -> bool:
        self.seen += 1
        return self.seen - 1 == self.place

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if type(node.op) in self.SWAPS and self.here():
            node.op = self.SWAPS[type(node.op)]()
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if type(node.ops[0]) in self.SWAPS and self.here():
            node.ops[0] = self.SWAPS[type(node.ops[0])]()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) is int and self.here():
            return ast.Constant(node.value + 1)
        return node


def mutants(tasks: list[Task], count: int) -> list[Task]:
    """One mutant of each of ``count`` tasks."""
    rng = random.Random(0)
    made = []
    for task in rng.sample(tasks, len(tasks)):
        counter = Mutate(-1)
        counter.visit(ast.parse(task.code))
        if counter.seen:
            tree = Mutate(rng.randrange(counter.seen)).visit(ast.parse(task.code))
            made.append(Task(task.name, ast.unparse(tree), task.ground_truth, task.plain))
        if len(made) == count:
            break
    return made


def passes_plainly(task: Task, timeout_s: float) -> bool:
    """The oracle: program and tests in one file, run by Python itself."""

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    try:
        done = subprocess.run(
            [sys.executable, "-c", f"{task.code}\n{task.plain}"],
            capture_output=True,
            timeout=timeout_s,
            preexec_fn=limits,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not CODE.is_dir(), reason="no shared data beside the project")
def test_a_mutant_scores_less_exactly_where_a_test_tells() -> None:
    slow = {"MBPP/123"}
    tasks = mutants([task for task in human_eval() + mbpp() if task.name not in slow], NUM_MUTANTS)
    assert len(tasks) == NUM_MUTANTS
    told = 0
    verifier = CodeVerifier(1, CodeConfig(timeout_s=5.0, sample_timeout_s=15.0, score="all"))
    try:
        for task in tasks:
            full = scored(verifier, task.code, task.ground_truth).result(timeout=60).score == 1.0
            assert full == passes_plainly(task, 5.0), task
            told += not full
    finally:
        verifier.close()
    assert told > NUM_MUTANTS // 2


SCRIPTS = {
    "sum": ("print(sum(map(int, input().split())))", [("1 2 3\n", "6\n"), ("-1 1", "0")]),
    "fib": ("n = int(input())\na, b = 0, 1\nfor _ in range(n): a, b = b, a + b\nprint(a)", [("10", "55"), ("1", "1")]),
    "lines": ("import sys\nfor line in sys.stdin: print(line.strip()[::-1])", [("ab\ncd\n", "ba\ndc\n"), ("x", "x")]),
    "sorted": ("input()\nprint(*sorted(map(int, input().split())))", [("3\n3 1 2\n", "1 2 3\n"), ("1\n1\n", "1\n")]),
    "gcd": ("from math import gcd\na, b = map(int, input().split())\nprint(gcd(a, b))", [("12 18", "6"), ("7 9", "1")]),
    "primes": (
        "n = int(input())\nprint([p for p in range(2, n) if all(p % d for d in range(2, p))])",
        [("12", "[2, 3, 5, 7, 11]"), ("5", "[2, 3]")],
    ),
    "mean": ("x = list(map(float, input().split()))\nprint(sum(x) / len(x))", [("1 2 4", "2.33333333"), ("1", "1.0")]),
    "matrix": (
        "n, m = map(int, input().split())\nrows = [input().split() for _ in range(n)]\n"
        "for column in zip(*rows): print(' '.join(column))",
        [("2 2\n1 2\n3 4\n", "1 3\n2 4\n"), ("1 3\na b c", "a\nb\nc")],
    ),
    "count": (
        "from collections import Counter\nc = Counter(input())\nprint(c.most_common(1)[0][0])",
        [("abcab b", "b"), ("aa", "a")],
    ),
    "queue": (
        "import heapq\nh = []\nfor _ in range(int(input())): heapq.heappush(h, int(input()))\n"
        "print(heapq.heappop(h) + 0)",
        [("3\n5\n2\n9\n", "2\n"), ("1\n4", "4")],
    ),
}
CALLS = {
    "add": ("def f(a, b):\n    return a + b", [([1, 2], 3), (["a", "b"], "ab")]),
    "two_sum": (
        "class Solution:\n    def f(self, nums: List[int], target: int) -> List[int]:\n        seen = {}\n"
        "        for i, x in enumerate(nums):\n            if target - x in seen: return [seen[target - x], i]\n"
        "            seen[x] = i",
        [([[2, 7, 11], 9], [0, 1]), ([[3, 3], 6], [0, 1])],
    ),
    "words": ("def f(text):\n    return dict(Counter(text.split()))", [(["a b a"], {"a": 2, "b": 1}), ([""], {})]),
    "median": (
        "def f(x):\n    x = sorted(x)\n    n = len(x)\n    return (x[n // 2] + x[(n - 1) // 2]) / 2",
        [([[1, 2]], 1.5), ([[3, 1, 2]], 2.0)],
    ),
    "is_even": ("def f(n):\n    return n % 2 == 0", [([2], True), ([3], False)]),
    "nothing": ("def f(x):\n    return None if x < 0 else x", [([-1], None), ([1], 1)]),
    "pairs": ("def f(n):\n    return [(i, i * i) for i in range(n)]", [([2], [[0, 0], [1, 1]]), ([0], [])]),
    "cached": (
        "@lru_cache(None)\ndef f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)",
        [([50], 12586269025), ([2], 1)],
    ),
    "unicode": ("def f(s):\n    return s.upper() + '☃'", [(["é"], "É☃"), ([""], "☃")]),
    "large": ("def f(n):\n    return 2 ** n - 1", [([200], 2**200 - 1), ([0], 0)]),
}


def own_tasks() -> list[Task]:
    tasks = []
    for name, (code, pairs) in SCRIPTS.items():
        truth = {"inputs": [given for given, _ in pairs], "outputs": [expected for _, expected in pairs]}
        tasks.append(Task(name, code, json.dumps(truth), ""))
    for name, (code, calls) in CALLS.items():
        truth = {"inputs": [given for given, _ in calls], "outputs": [result for _, result in calls], "fn_name": "f"}
        tasks.append(Task(name, code, json.dumps(truth), ""))
        lines = truth | {
            "inputs": ["\n".join(map(json.dumps, given)) for given, _ in calls],
            "outputs": [json.dumps(result) for _, result in calls],
        }
        tasks.append(Task(f"{name} as lines", code, json.dumps(lines), ""))
    return tasks


def test_programs_of_our_own_score_1_and_a_changed_one_less(verifier: CodeVerifier) -> None:
    tasks = own_tasks()
    right = [(task, scored(verifier, task.code, task.ground_truth)) for task in tasks]
    assert {task.name: f.result(timeout=60) for task, f in right if f.result(timeout=60).score != 1.0} == {}
    # A constant or an operator that the first test tells apart.
    changes = {"sum": ("sum", "max"), "fib": ("a + b", "a - b"), "gcd": ("gcd(a", "gcd(1 + a"), "add": ("+", "*"),
               "is_even": ("== 0", "== 1"), "pairs": ("i * i", "i + i"), "large": ("- 1", "- 2"),
               "queue": ("+ 0", "+ 1"), "median": ("/ 2\"", "/ 3")}  # fmt: skip
    for task in tasks:
        old, new = changes.get(task.name, ("", ""))
        if old and old in task.code:
            verdict = scored(verifier, task.code.replace(old, new), task.ground_truth).result(timeout=60)
            assert verdict.score < 1.0, task
