"""Stages that ask a model, against a server on loopback: statuses, thresholds, bounded retries, bytes after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.data.actions import ACTIONS, form_problem, read_steps
from prime_megatron.data.rows import read_sft_rows
from tests.support.answering import Reply, answering
from tests.support.curating import Ran, curated, write_rows

QUICK = ["--retries", "2", "--timeout-s", "0.5", "--concurrency", "4", "--workers", "1"]
FORM = (
    "[ASSESS] Two numbers.\nNext action: [ADVANCE]\n\n[ADVANCE] Add them.\nNext action: [OUTPUT]\n\n"
    "[OUTPUT] \\boxed{%s}"
)
ATTEMPTS = {
    "right": ["7", "7", "7.0", "7", "\\frac{14}{2}"],
    "half": ["7", "7", "3", "4", "No solution"],
    "other": ["8", "8", "8", "7", "8"],
    "none": ["\\text{No solution}", "no solution.", "No Solutions", "7", "7"],
    "scattered": ["1", "2", "3", "4", "7"],
    "silent": ["", "", "", "", "7"],
    "planted": ["7", "7", "7", "7", "7"],
    "planted too": ["No solution"] * 5,
}


def numbered() -> Any:
    """Counts the requests about each problem, as an attempt's number."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def count(problem: str) -> int:
        with lock:
            counts[problem] += 1
            return counts[problem] - 1

    return count


def test_attempts_keep_what_holds_and_tell_why_not(tmp_path: Path) -> None:
    count = numbered()

    def reply(text: str, body: dict[str, Any]) -> Reply:
        name = text.rsplit("\n", 1)[1]
        answer = ATTEMPTS[name][count(name) % 5]
        return f"so \\boxed{{{answer}}}" if answer else "I do not know"

    rows = [curated(name, name, solvable=False if name.startswith("planted") else None) for name in ATTEMPTS]
    path = write_rows(tmp_path / "in.jsonl", rows)
    with answering(reply) as url:
        words = [
            "--model",
            "m",
            "--model",
            "n",
            "--endpoint",
            url,
            *QUICK,
            "attempts.ask.max_tokens=64",
            "attempts.n=5",
        ]
        ran = Ran("attempts", [path], tmp_path / "out.jsonl", *words, "attempts.ask.block=10")
    assert ran.why() == {
        "other": "other_answer", "none": "unsolvable", "scattered": "no_agreement", "silent": "no_agreement",
        "planted": "planted_unsolvable", "planted too": "unsolvable",
    }  # fmt: skip
    kept = {row["id"]: row for row in ran.kept}
    assert {name: row["difficulty"] for name, row in kept.items()} == {"right": 0.0, "half": pytest.approx(0.6)}
    told = kept["half"]["curation"]["attempts"]
    assert Counter(told["statuses"]) == {"right": 4, "wrong": 4, "no_solution": 2} and told["models"] == ["m", "n"]
    assert (told["agreement"], told["right"], told["no_solution"], told["majority"]) == (0.4, 0.4, 0.2, "")
    assert ran.report["statuses"] == {
        "right": 10 + 4 + 2 + 4 + 2 + 2 + 10, "wrong": 4 + 8 + 8, "answered": 0, "no_solution": 2 + 6 + 10,
        "no_answer": 8, "cut": 0, "undecided": 0, "failed": 0,
    }  # fmt: skip
    assert sum(ran.report["statuses_by_model"]["n"].values()) == 40
    assert ran.report["false_solvable"] == {"planted": 2, "kept": 1, "rate": 0.5}
    assert ran.report["requests"] == {"asked": 80, "failed": 0, "retries": 0}


@pytest.mark.parametrize("fault", ["garbage", "500s", "hangs", "refuses"])
def test_a_server_that_fails_loses_no_row(fault: str, tmp_path: Path) -> None:
    """Every third request fails once, and everything about one row fails for good."""
    count, total = numbered(), [0]

    def reply(text: str, body: dict[str, Any]) -> Reply:
        total[0] += 1
        bad: Reply = {"garbage": (200, "<html>"), "500s": (500, "boom"), "hangs": None, "refuses": (422, "too long")}[
            fault
        ]
        if text.endswith("cursed") or (fault != "refuses" and count("all") % 3 == 0):
            return bad
        return "\\boxed{7}"

    rows = [curated(f"r{number}", f"problem {number}") for number in range(6)] + [curated("c", "the cursed")]
    path = write_rows(tmp_path / "in.jsonl", rows)
    with answering(reply) as url:
        words = ["--model", "m", "--endpoint", url, *QUICK, "attempts.ask.max_tokens=64", "attempts.n=2"]
        ran = Ran("attempts", [path], tmp_path / "out.jsonl", *words)
    assert ran.report["rows_in"] == 7 and ran.why()["c"] == "unanswered"
    assert ran.report["statuses"]["failed"] == ran.report["requests"]["failed"] >= 2
    assert {row["id"] for row in (*ran.kept, *ran.dropped)} == {row["id"] for row in rows}
    assert total[0] <= 14 * 3, "an attempt is asked three times at most"
    if fault == "refuses":
        assert total[0] == 14, "what is refused is not asked again"
    else:
        assert ran.report["requests"]["retries"] >= 4


def test_a_dead_server_ends_the_stage_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alive = [False]

    def reply(text: str, body: dict[str, Any]) -> Reply:
        return "\\boxed{7}" if alive[0] or "problem 0" in text else (500, "boom")

    path = write_rows(tmp_path / "in.jsonl", [curated(f"r{number}", f"problem {number}") for number in range(5)])
    with answering(reply) as url:
        words = ["--model", "m", "--endpoint", url, *QUICK, "--retries", "0", "attempts.n=1"]
        words += ["attempts.ask.block=1", "attempts.ask.max_failed=2"]
        assert Ran("attempts", [path], tmp_path / "out.jsonl", *words).code == 1
        told = capsys.readouterr().err
        assert "2 requests failed in a row" in told and "boom" in told
        assert not (tmp_path / "out.jsonl").exists()
        alive[0] = True
        ran = Ran("attempts", [path], tmp_path / "out.jsonl", *words)
    assert ran.report["requests"] == {"asked": 5, "failed": 1, "retries": 0}, "what came before is kept"
    assert ran.why() == {"r1": "unanswered"}


CHOICE = "What is 3+4? (A) 6 (B) 7 (C) 8"


def passes(text: str, body: dict[str, Any]) -> Reply:
    """A model that takes two turns to understand the row "slow", and never the row "mad"."""
    if "mad" in text or ("slow" in text and body["temperature"] == 0):
        return "I cannot."
    if "Decision:" in text:
        return "Decision: no\nReason: it compares" if "compare:" in text else "Decision: yes\nReason: one value"
    asked = re.search(r"(\w+): What is 3\+4\?", text)
    if "<question>" in text:
        return f"<question>{asked[1] if asked else 'x'}: What is 3+4?</question>"
    return "<solution>3+4 is \\boxed{%s}.</solution>" % ("8" if "false:" in text else "B" if "letter:" in text else "7")


def test_choices_become_questions(tmp_path: Path) -> None:
    rows = [
        curated(name, f"{name}: {CHOICE}", "B", solution="so (B)")
        for name in ("good", "slow", "mad", "false", "letter")
    ]
    rows += [curated("compare", f"compare: {CHOICE}", "B"), curated("open", "What is 3+4?")]
    rows += [curated("which", "Which of the following is prime? (A) 4 (B) 7 (C) 8", "B")]
    path = write_rows(tmp_path / "in.jsonl", rows)
    with answering(passes) as url:
        words = ["--model", "m", "--endpoint", url, *QUICK, "choices.rounds=2"]
        ran = Ran("choices", [path], tmp_path / "out.jsonl", *words)
    assert ran.why() == {
        "mad": "unreadable", "false": "unreadable", "letter": "unreadable", "compare": "not_removable",
        "which": "needs_choices",
    }  # fmt: skip
    kept = {row["id"]: row for row in ran.kept}
    assert kept["open"]["curation"] == {} and kept["open"]["problem"] == "What is 3+4?"
    good = kept["good"]
    assert good["problem"] == "good: What is 3+4?" and good["reward_model"]["ground_truth"] == "7"
    assert good["prompt"][-1]["content"].startswith("good: What is 3+4?\n\nWrite") and "boxed{7}" in good["solution"]
    told = kept["slow"]["curation"]["choices"]
    assert [told[name]["rounds"] for name in ("removable", "question", "solution")] == [2, 2, 2]
    assert told["original"] == {"problem": f"slow: {CHOICE}", "ground_truth": "B", "solution": "so (B)"}
    why = {row["id"]: row["dropped"]["why"] for row in ran.dropped}
    assert "is not the choice '7'" in why["false"] and "still the letter" in why["letter"]
    assert why["compare"] == "it compares" and why["mad"].startswith("removable: 2 replies")


GOOD = [
    FORM % "7",
    (FORM % "7").replace("[ASSESS]", "## [ASSESS]").replace("\n\n", "\n"),
    (FORM % "7")
    .replace("Add them.\nNext", "Add them. Next")
    .replace("Next action: [ADVANCE]", "**Next action:** [ADVANCE]"),
    "[ASSESS] a\nNext action: [PIVOT]\n[PIVOT] b [5, 7] of the set [A, B]\nNext action: [PIVOT]\n"
    "[PIVOT] c\nNext action: [OUTPUT]\n[OUTPUT] d",
]
BAD = {
    "no_steps": "so it is 7", "begins_otherwise": "Well. " + FORM % "7",
    "unknown_action": (FORM % "7").replace("ADVANCE", "GUESS"),
    "empty_step": (FORM % "7").replace("Add them.", ""), "ends_otherwise": "[ASSESS] a\nNext action: [OUTPUT]",
    "no_next_action": (FORM % "7").replace("Next action: [OUTPUT]", ""),
    "other_next_action": (FORM % "7").replace("Next action: [OUTPUT]", "Next action: [PIVOT]"),
    "output_goes_on": FORM % "7" + "\nNext action: [ASSESS]",
}  # fmt: skip


def test_the_form_of_actions() -> None:
    assert [form_problem(text) for text in GOOD] == [None] * len(GOOD)
    assert {name: (form_problem(text) or ("",))[0] for name, text in BAD.items()} == {name: name for name in BAD}
    assert form_problem((FORM % "7").replace("[ASSESS]", "[ADVANCE]"))[0] == "begins_otherwise"
    assert form_problem(FORM % "7" + "\n[ASSESS] again\nNext action: [OUTPUT]\n[OUTPUT] x")[0] == "output_goes_on"
    steps = read_steps(GOOD[1])
    assert [(step.action, step.next_action) for step in steps] == [
        ("ASSESS", "ADVANCE"), ("ADVANCE", "OUTPUT"), ("OUTPUT", None),
    ]  # fmt: skip
    assert (steps[0].text, steps[2].text) == ("Two numbers.", "\\boxed{7}")


def test_supervised_rows_keep_the_form_and_the_truth(tmp_path: Path) -> None:
    seen: list[list[dict[str, str]]] = []

    def reply(text: str, body: dict[str, Any]) -> Reply:
        seen.append(body["messages"])
        return {"wrong": FORM % "8", "formless": "\\boxed{7}", "free": FORM % "anything"}.get(text, FORM % "7")

    chat = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "turns"},
    ]  # fmt: skip
    rows = [curated(name, name, None if name == "free" else "7") for name in ("fine", "wrong", "formless", "free")]
    path = write_rows(tmp_path / "in.jsonl", [*rows, curated("turns", "turns", prompt=chat)])
    with answering(reply) as url:
        words = ["--model", "m", "--endpoint", url, *QUICK]
        ran = Ran("sft", [path], tmp_path / "out.jsonl", *words, "sft.system=Think in steps.")
        own = Ran("sft", [path], tmp_path / "own.jsonl", *words, "sft.check=off", "sft.truth=ignore")
    assert ran.why() == {"wrong": "wrong", "formless": "no_steps"}
    assert ran.report["statuses"] == {"good": 3, "no_steps": 1, "wrong": 1}
    assert all(all(f"[{action}]" in messages[0]["content"] for action in ACTIONS) for messages in seen)
    learned = {row.messages[-2].content: row for row in read_sft_rows([str(ran.output)])}
    assert learned["fine"].messages[0].content == "Think in steps."
    assert [message.role for message in learned["turns"].messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert learned["turns"].messages[0].content == "Think in steps.\n\nBe kind."
    assert len(own.kept) == 5 and own.kept[0]["messages"][0]["content"].endswith("belongs into [OUTPUT].")


def test_after_kill_minus_nine_the_same_bytes(tmp_path: Path) -> None:
    """The first attempt is killed while it waits for an answer in its third block."""
    hang = threading.Event()

    def reply(text: str, body: dict[str, Any]) -> Reply:
        if "problem 9" in text and not hang.is_set():
            time.sleep(60)
        return f"\\boxed{{{body['seed'] % 3}}}"

    path = write_rows(tmp_path / "in.jsonl", [curated(f"r{number}", f"problem {number}", "1") for number in range(12)])
    with answering(reply) as url:
        words = ["--model", "m", "--endpoint", url, "--workers", "1", "attempts.n=4", "attempts.ask.block=16"]
        command = [sys.executable, "-m", "prime_megatron", "curate", "attempts", str(path), *words]
        output = tmp_path / "out.jsonl"
        killed = subprocess.Popen([*command, "--output", str(output)], stderr=subprocess.DEVNULL)
        blocks = tmp_path / "out.jsonl.blocks" / "samples-0"
        until_s = time.monotonic() + 120
        while not (blocks / "block-000001.jsonl").exists() and time.monotonic() < until_s:
            time.sleep(0.05)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert not output.exists() and not (blocks / "block-000002.jsonl").exists()
        hang.set()
        first = (blocks / "block-000001.jsonl").stat().st_mtime_ns
        again = Ran("attempts", [path], output, *words)
        whole = Ran("attempts", [path], tmp_path / "whole.jsonl", *words)
    assert first and [one.read_bytes() for one in again.paths] == [one.read_bytes() for one in whole.paths]
    assert not (tmp_path / "out.jsonl.blocks").exists()
