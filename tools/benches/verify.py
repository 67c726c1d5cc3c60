"""Verdicts on math answers a second: this tree against an older commit, side by side in one run.

--baseline COMMIT: its tree is unpacked by `git archive` into a temporary folder. Each round starts a process of each
side, old and new in turn, that loads its own tree, grades every pair once without a clock (tables, caches of regular
expressions) and once with one; so a slow stretch of the machine hits both. CPU seconds of that process alone, the
grader in it: what is timed is `verify.math.decide` and, where it does not decide, the grader that the worker processes
hold; pipes and processes are the same in both and are left out.

Pairs, made here from a seed: "short" is what most answers to grade-school problems look like (numbers, decided without
computer algebra), "mixed" has fractions, roots, expressions, tuples, intervals and text, half of them right.
figures: answers a second of each side, and speedup, the median over rounds of old / new seconds (1 is as fast; below
0.95 is a loss of more than 5 %). agree: share of the pairs with the same score on both sides.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tools.benches import common

ROOT = Path(__file__).resolve().parents[2]
SETS = ("short", "mixed")
_SIDE = """
import json, logging, sys, time
sys.path.insert(0, sys.argv[1])
from prime_megatron.verify.answer import Verdict
from prime_megatron.verify.math import decide
try:
    from prime_megatron.verify.symbolic import MathGrader
except ImportError:
    from prime_megatron.verify.worker import MathGrader
logging.disable(logging.CRITICAL)
pairs = json.load(open(sys.argv[2]))
grader = MathGrader()
def score(truth, answer):
    decision = decide("so it is \\\\boxed{" + answer + "}", truth)
    if isinstance(decision, Verdict):
        return decision.score
    return grader.grade({"answer": decision[0], "ground_truth": decision[1]})[0]
scores = [score(*pair) for pair in pairs]
begin = time.process_time()
for pair in pairs:
    score(*pair)
print(json.dumps({"seconds": time.process_time() - begin, "scores": scores}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--baseline", required=True, metavar="COMMIT", help="the older side")
    parser.add_argument("--pairs", type=int, default=600, help="mixed ones; of the short there are ten times as many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timeout-s", type=float, default=300.0, help="of one side in one round")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"baseline": arguments.baseline, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory(prefix="prime-bench-verify-") as folder:
        old = Path(folder) / "old"
        old.mkdir()
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", arguments.baseline, "prime_megatron"],
            check=True,
            stdout=subprocess.PIPE,
        )
        subprocess.run(["tar", "x", "-C", str(old)], input=archive.stdout, check=True)
        for name in SETS:
            pairs = make_pairs(name, arguments.pairs)
            file = Path(folder) / f"{name}.json"
            file.write_text(json.dumps(pairs))
            figures |= {f"{name}_{key}": value for key, value in _measured(old, file, len(pairs), arguments).items()}
    return common.line("verify", torch.device("cpu"), figures, {}, ("math-verify", "sympy"))


def _measured(old: Path, file: Path, num_pairs: int, arguments: argparse.Namespace) -> dict[str, float]:
    seconds: dict[str, list[float]] = {"old": [], "new": []}
    scores: dict[str, list[float]] = {}
    for count in range(arguments.rounds):
        print(f"bench: verify: {file.stem}: round {count + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        for side, root in (("old", old), ("new", ROOT)):
            reply = _side(root, file, arguments.timeout_s)
            seconds[side].append(reply["seconds"])
            scores[side] = reply["scores"]
    same = sum(a == b for a, b in zip(scores["old"], scores["new"], strict=True))
    return {
        "pairs": num_pairs,
        "old_per_s": round(num_pairs / statistics.median(seconds["old"]), 1),
        "new_per_s": round(num_pairs / statistics.median(seconds["new"]), 1),
        "speedup": common.ratio(seconds, "old", "new"),
        "agree": round(same / num_pairs, 4),
    }


def _side(root: Path, file: Path, timeout_s: float) -> dict[str, Any]:
    command = [sys.executable, "-P", "-c", _SIDE, str(root), str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, timeout=timeout_s)
    return json.loads(done.stdout)


def make_pairs(name: str, count: int) -> list[tuple[str, str]]:
    """(ground truth, answer) of a set; the same for the same count."""
    draw = random.Random(0)
    if name == "short":
        return [_short(draw) for _ in range(10 * count)]
    return [_mixed(draw, index) for index in range(count)]


def _short(draw: random.Random) -> tuple[str, str]:
    truth = draw.randrange(1, 20_000)
    given = truth if draw.random() < 0.5 else truth + draw.randrange(1, 50)
    spelling = draw.choice(("{}", "{}", "{}", "${}$", "{}.00", "\\${}", "{} dollars", "{}\\text{{ miles}}", "{:,}"))
    return str(truth), spelling.format(given)


def _mixed(draw: random.Random, index: int) -> tuple[str, str]:
    a, b, c = (draw.randrange(2, 40) for _ in range(3))
    wrong = index % 2
    kinds = (
        (f"\\frac{{{a}\\sqrt{{{b}}}}}{{{c}}}", f"\\frac{{{a}}}{{{c}}}\\sqrt{{{b + wrong}}}"),
        (f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b + wrong})"),
        (f"{a}\\pi+{b}", f"{b + wrong}+{a}\\pi"),
        (f"2^{{{a}}}", f"2 \\cdot 2^{{{a - 1 + wrong}}}"),
        (f"({a},{b},{c})", f"({a}, {b}, {c + wrong})"),
        (f"[{a},{a + b})", f"\\left[{a}, {a + b + wrong}\\right)"),
        (f"\\{{{a},{a + b}\\}}", f"\\{{{a + b + wrong},{a}\\}}"),
        (f"y={a}x-{b}", f"y={a}x-{b + wrong}"),
        (f"\\frac{{x+{a}}}{{{b}}}", f"\\frac{{x}}{{{b}}}+\\frac{{{a + wrong}}}{{{b}}}"),
        ("\\text{even}", "\\text{odd}" if wrong else "Even"),
        (f"{a}\\sqrt{{3}}+{b}i", f"{b + wrong}i+{a}\\sqrt{{3}}"),
        (f"\\log_{{2}} {a}", f"\\frac{{\\ln {a + wrong}}}{{\\ln 2}}"),
    )
    return kinds[index // 2 % len(kinds)]
