"""Near-duplicates and copies of held-out problems: planted ones are found, problems alike are left."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from prime_megatron.config.curate import DecontaminateConfig
from prime_megatron.curate.held_out import HeldOut, HeldOutIndex
from prime_megatron.curate.short_texts import word_edits
from tests.support.curating import Ran, curated, write_rows

DATA = Path(__file__).parents[3] / "shared" / "data" / "math"
LONG = (
    "A train leaves the station at noon and travels north at 60 miles an hour while a second train leaves the same "
    "station one hour later and travels north at 80 miles an hour. How many hours later do they meet?"
)
SHORT = "What is the largest prime factor of $2^{10} - 1$?"
FORMULA = r"Simplify $\frac{(10r^3)(4r^6)}{8r^4}$ as far as you can."


def one_word_other(text: str, place: int, word: str) -> str:
    words = text.split()
    return "  ".join([*words[:place], *([word] if word else []), *words[place + 1 :]]).swapcase()


def test_every_planted_copy_is_found() -> None:
    index = HeldOutIndex(
        [HeldOut(f"s/{n}", text) for n, text in enumerate((LONG, SHORT, FORMULA))], DecontaminateConfig()
    )
    for number, text in enumerate((LONG, SHORT, FORMULA)):
        edited = [
            one_word_other(text, place, word) for place in range(len(text.split())) for word in ("zebra", "17", "")
        ]
        copies = [
            text,
            text.upper(),
            "".join(text.split()),
            f"Solve this. {LONG} Think." if number == 0 else text,
            *edited,
        ]
        assert [
            one for one, found in zip(copies, index.copies(copies), strict=True) if found is None or found[2] != number
        ] == []
    other = [
        "How many hours does a train need from noon on?", "What is the smallest prime factor of 15?", "",
        "Simplify as far as you can the long and other product of these two numbers.",
        "A train leaves the station at noon and travels north at 60 miles an hour. How far is it at two?",
    ]  # fmt: skip
    assert index.copies(other) == [None] * 5


def test_a_common_instruction_is_no_copy() -> None:
    tail = "Express your answer in the form $a + b$ where $a$ and $b$ are positive integers and $b$ is prime."
    held = HeldOut("s/0", f"Two circles of radii 3 and 5 touch each other from outside in one point $P$. {tail}")
    row = f"The parabola through the origin and the points with abscissae 9 and 11 is moved to the left. {tail}"
    assert HeldOutIndex([held], DecontaminateConfig()).copies([row]) == [None]
    (found,) = HeldOutIndex([held], DecontaminateConfig(shared=0.0)).copies([row])
    assert found is not None and found[0] == "ngram"


@pytest.mark.parametrize(("one", "other", "edits"), [("a b c", "a x c", 1), ("a b c", "b c", 1), ("a b", "b a", 2)])
def test_word_edits_are_levenshteins(one: str, other: str, edits: int) -> None:
    assert word_edits(one.split(), other.split(), 2) == edits
    assert word_edits(one.split(), other.split(), edits - 1) is None


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not here: MATH and GSM8K are needed")
def test_real_problems_are_told_from_copies(tmp_path: Path) -> None:
    """1,000 clean rows of MATH's training split and 100 planted copies, against MATH-500 as the suite reads it."""
    train = [row["problem"] for row in json.loads((DATA / "math_train_7474.json").read_text())]
    held = list(json.loads((DATA / "math500.json").read_text())["problem"].values())
    draw = random.Random(7)
    rows = [curated(f"clean-{n}", text) for n, text in enumerate(draw.sample(train, 1000))]
    long_enough = [text for text in held if len(text.split()) > 3]
    for number, text in enumerate(draw.sample(long_enough, 100)):
        rows.append(curated(f"copy-{number}", one_word_other(text, draw.randrange(len(text.split())), "zebra")))
    path = write_rows(tmp_path / "in.jsonl", rows)
    ran = Ran(
        "decontaminate", [path], tmp_path / "out.jsonl", "--suite", "math", "--data", str(DATA), "--sets", "math500"
    )
    named = ran.why()
    assert sum(name.startswith("copy") for name in named) == 100
    assert sum(name.startswith("clean") for name in named) <= 30
    assert all("math500/" in row["dropped"]["why"] for row in ran.dropped)
    assert ran.report["settings"]["problems"] == 500


def test_supervised_rows_are_held_against_rows_kept_for_rl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rl = [{"prompt": [{"role": "user", "content": f"{text}\n\nEnd with \\boxed{{}}."}]} for text in (LONG, SHORT)]
    against = write_rows(tmp_path / "rl.jsonl", rl)
    path = write_rows(tmp_path / "in.jsonl", [curated("a", SHORT.lower()), curated("b", "What is 2+2?")])
    ran = Ran("decontaminate", [path], tmp_path / "out.jsonl", "--against", str(against))
    assert ran.why() == {"a": "whole_text"} and "rl.jsonl/2" in ran.dropped[0]["dropped"]["why"]
    capsys.readouterr()
    assert Ran("decontaminate", [path], tmp_path / "none.jsonl").code == 2
    assert "--suite or --against" in capsys.readouterr().err


def test_near_duplicates_go_and_problems_alike_stay(tmp_path: Path) -> None:
    rows = [
        curated("first", LONG),
        curated("same", LONG.upper().replace(" ", "  "), "8"),
        curated("word", LONG.replace("station", "platform", 1)),
        curated("numbers", LONG.replace("60", "70")),
        curated("truth", LONG.replace("north", "south", 1), "9"),
        curated("spelled", LONG.replace("miles", "km", 1), "\\boxed{7.0}"),
        curated("sum", "What is $3+5$?"),
        curated("difference", "What is $3-5$?"),
        curated("short", SHORT),
        curated("short-word", SHORT.replace("largest", "biggest")),
        curated("short-other", SHORT.replace("largest", "smallest"), "3"),
    ]
    path = write_rows(tmp_path / "in.jsonl", rows)
    ran = Ran("dedup", [path], tmp_path / "out.jsonl")
    assert ran.why() == {
        "same": "duplicate", "word": "near_duplicate", "spelled": "near_duplicate", "short-word": "near_duplicate",
    }  # fmt: skip
    why = {row["id"]: row["dropped"]["why"] for row in ran.dropped}
    assert why["same"] == "the same words with another ground truth as first"
    assert why["short-word"] == "all words but one the same as short"
    loose = Ran("dedup", [path], tmp_path / "loose.jsonl", "dedup.numbers=any")
    assert "numbers" in loose.why()
    assert Ran("dedup", [path], tmp_path / "bad.jsonl", "dedup.bands=30").code == 2
