"""The report's parts: what is read, thinned, packed and judged; and pages of folders that no run left in order."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prime_megatron.cli.main import main
from prime_megatron.report.curves import MAX_POINTS, curve_of
from prime_megatron.report.judgement import calibration, in_words, standing, wilson
from prime_megatron.report.page import MAX_BYTES
from prime_megatron.report.response import response_of, utf16_places
from prime_megatron.report.run import read_runs
from prime_megatron.report.samples import Judged, Place, show, spread, survey
from prime_megatron.report.tokens import largest, paid, scales
from tests.support.report_runs import NASTY, edit, metrics_row, random_samples, sample_row, write_lines, write_run

ROOT = Path(__file__).parents[2]


class Tags(HTMLParser):
    """Every element that a browser would make, and what stands in the page's JSON."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(*folders: Path, options: tuple[str, ...] = ()) -> str:
    """Written by the verb."""
    assert main(["report", *map(str, folders), *options]) == 0
    return (folders[0] / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    """What the page's script is given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


def unpacked(packed: str) -> dict[str, Any]:
    return json.loads(zlib.decompress(base64.b64decode(packed)))  # type: ignore[no-any-return]


def test_a_missing_step_is_a_gap_and_nan_is_one_too() -> None:
    rows = [{"step": step, "a": float(step)} for step in (1, 2, 3, 7, 8)]
    rows[1]["a"] = "NaN"  # type: ignore[assignment]
    curve = curve_of(rows, "a", run=0, label="")
    assert curve is not None and not curve.thinned
    assert curve.steps == (1, 2, 3, 5, 7, 8)
    assert [None if math.isnan(value) else value for value in curve.values] == [1, None, 3, None, 7, 8]
    sparse = curve_of([{"step": step, "a": 1.0} for step in (0, 10, 20, 25)], "a", run=0, label="")
    assert sparse is not None and len(sparse.steps) == 4, "an evaluation every ten steps has no gaps"
    assert curve_of([{"step": 1, "a": "Infinity"}, {"step": 2, "a": "word"}], "a", run=0, label="") is None


def test_thinning_keeps_every_peak() -> None:
    values = np.sin(np.arange(5000) / 700)
    values[[1234, 4321]] = 7.0, -9.0
    rows = [{"step": step, "a": float(value)} for step, value in enumerate(values)]
    curve = curve_of(rows, "a", run=0, label="")
    assert curve is not None and curve.thinned and len(curve.steps) <= MAX_POINTS
    assert dict(zip(curve.steps, curve.values))[1234] == 7.0 and min(curve.values) == -9.0
    assert list(curve.steps) == sorted(curve.steps)
    assert all(value == values[int(step)] for step, value in zip(curve.steps, curve.values))


def test_standing_and_calibration_against_numpy() -> None:
    rng = np.random.default_rng(0)
    p = np.round(rng.random(400), 2)  # with ties
    outcome = (rng.random(400) < p).astype(float)
    early = [Judged(1, 0.5, 1.0)] * 50
    judged = early + [Judged(9, *pair) for pair in zip(p.tolist(), outcome.tolist())]
    found = standing(judged)
    assert found is not None and found.num_responses == 400, "the first half of the steps is left out"
    right, wrong = p[outcome == 1], p[outcome == 0]
    auc = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
    assert found.auc == pytest.approx(auc, abs=1e-12) and in_words(found) == "tells right from wrong"
    assert (found.right, found.wrong) == pytest.approx((right.mean(), wrong.mean()))
    turned = standing([Judged(9, one.probability, 1.0 - one.outcome) for one in judged[50:]])
    assert turned is not None and turned.auc == pytest.approx(1 - auc, abs=0.01)
    assert in_words(turned).startswith("pays for wrong responses")
    bins = calibration(judged[50:])
    order = np.argsort(p, kind="stable")
    for own, part in zip(bins, np.split(order, 10), strict=True):
        assert own.count == 40 and own.probability == pytest.approx(p[part].mean())
        assert own.outcome == pytest.approx(outcome[part].mean())
        # Both ends solve (share - x)^2 = z^2 x (1 - x) / n.
        for end in wilson(own.outcome, own.count):
            assert (own.outcome - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / 40, abs=1e-12)
    assert standing([]) is None and math.isnan(standing(early).auc)  # type: ignore[union-attr]


def test_a_response_is_packed_as_a_browser_counts() -> None:
    pieces = ["a😀", "", "é\n", "</b>"]
    row = sample_row(1, 2, 0, pieces, [0.5, "NaN", -0.25, 0.0])  # type: ignore[list-item]
    response = response_of(row)
    assert response.pieces == pieces and response.steps == [2, 3] and response.total == 0.25
    packed = response.packed()
    lengths = [len(piece.encode("utf-16-le")) // 2 for piece in pieces]
    assert packed["e"] == lengths
    assert [None if r is None else r * packed["u"] for r in packed["r"]] == [0.5, None, -0.25, 0.0]
    assert utf16_places("a😀b", [0, 1, 2, 3]) == [0, 1, 3, 4]


def test_a_row_that_does_not_fit_together_loses_only_that() -> None:
    row = sample_row(1, 2, 0, ["a", "b"], [0.5, -0.5])
    assert response_of({**row, "token_ends": [1, 9]}).pieces == ["#0", "#1"]
    assert response_of({**row, "token_ends": None}).rewards == [0.5, -0.5]
    assert response_of({**row, "process_rewards": [0.5]}).rewards == []
    assert response_of({**row, "response": None, "outcome": "NaN", "prm_probability": "Infinity"}).outcome == 0.0
    for right, probability, rewards, disagrees in (
        (1.0, 0.3, [1.0, 1.0], True), (1.0, 0.7, [-1.0, -1.0], False), (1.0, None, [-1.0, 0.5], True),
        (0.0, None, [-1.0, 0.5], False), (0.0, None, [], False),
    ):  # fmt: skip
        changed = {**row, "outcome": right, "prm_probability": probability, "process_rewards": rewards}
        assert response_of(changed).disagrees is disagrees


def test_every_beginning_of_the_spread_is_even() -> None:
    places = [Place(step, "trained", 0, (0,)) for step in range(100)]
    order = [place.step for place in spread(places)]
    assert sorted(order) == list(range(100))
    for count in (4, 10, 40):
        gaps = np.diff([-1, *sorted(order[:count]), 100])
        assert gaps.max() <= 4 * 100 / count
    assert list(spread([])) == []


def test_largest_and_paid_tokens(tmp_path: Path) -> None:
    rows = [
        sample_row(1, 0, 0, ["x", " y", " z"], [0.5, -0.2, 0.0]),
        sample_row(1, 0, 1, ["x", " y", " w"], [-1.5, -0.2, 0.1]),
        sample_row(2, 1, 0, ["x"], [float("inf")]),
    ]
    rows[2]["process_rewards"] = ["Infinity"]
    write_lines(tmp_path / "samples.jsonl", rows)
    shown = show(survey(tmp_path / "samples.jsonl"), 10**6)
    most, least = largest(shown)
    assert [(one.reward, one.piece, one.before, one.behind) for one in most] == [
        (0.5, "x", "", " y z"), (0.1, " w", "x y", ""),
    ]  # fmt: skip
    assert [(one.reward, one.response, one.token, one.right) for one in least] == [
        (-1.5, 1, 0, False), (-0.2, 0, 1, True), (-0.2, 1, 1, False),
    ]  # fmt: skip
    found = {one.piece: one for one in paid(shown)}
    assert found["x"].share == pytest.approx(2.0 / 2.5) and found["x"].count == 2
    assert (found["x"].mean_right, found["x"].mean_wrong) == (0.5, -1.5) and math.isnan(found[" w"].mean_right)
    assert scales(shown) == (1.5, {1: 1.5, 2: 0.0})


def test_text_of_a_run_stays_text(tmp_path: Path) -> None:
    rows = [sample_row(1, 0, 0, [NASTY, "\n", NASTY], [0.5, -0.2, 0.1], prompt=NASTY, reason=NASTY, data_source=NASTY)]
    folder = write_run(tmp_path / "a&lt;b>", samples=rows)
    write_lines(folder / "events.jsonl", [{"step": 1, "kind": "warning", "text": f"step 2: {NASTY}", "time": 1.8e9}])
    edit(folder / "metrics.jsonl", lambda text: text.replace('"eval/amc/accuracy"', '"eval/<b>$x^{/accuracy"'))
    page = page_of(folder)
    tags = Tags(page)
    scripts = [attributes for tag, attributes in tags.tags if tag == "script"]
    assert [one for one in scripts if one.get("type") != "application/json"] == [{}], "one script, the page's own"
    assert all(name != "onclick" for _, attributes in tags.tags for name in attributes)
    assert "title=" not in page.replace("&#34;", '"').split("<body>")[0]
    assert NASTY in "".join(tags.text)
    content = unpacked(data_of(page)["groups"][0]["packed"])
    assert content["prompt"] == NASTY and content["s"][0]["t"] == f"{NASTY}\n{NASTY}"
    # Nothing is fetched: no element names an address, and the policy in the page forbids it.
    assert not [
        a for _, a in tags.tags for key in ("src", "href", "data", "action") if not (a.get(key) or "#").startswith("#")
    ]
    assert "default-src 'none'" in page and "http" not in re.sub(r"http-equiv|https?", "http-", page).replace(
        "http-", ""
    )


def test_a_thousand_long_responses_stay_under_ten_megabytes(tmp_path: Path) -> None:
    samples = random_samples(range(1, 26), prompts=10, samples=4, tokens=3000)
    folder = write_run(tmp_path / "run", 25, samples=samples)
    page = page_of(folder)
    assert MAX_BYTES / 2 < len(page.encode()) <= MAX_BYTES == 10_000_000
    groups = data_of(page)["groups"]
    assert {len(group["s"]) for group in groups} == {4}, "siblings stay together"
    assert len({group["step"] for group in groups}) == 25, "every step is there"
    shown = sum(len(group["s"]) for group in groups)
    assert f"thinned to {shown} of 1000 responses" in page and 200 < shown < 1000


def test_two_runs_share_the_pictures(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / name / "run", samples=random_samples([2], prompts=2, samples=2, tokens=20, seed=seed))
        for seed, name in enumerate("ab")
    ]
    page = page_of(*folders)
    assert "a/run" in page and "b/run" in page and [run["name"] for run in data_of(page)["runs"]] == ["a/run", "b/run"]
    assert page.count("<b>Held-out accuracy</b>") == 1 and page.count("<b>Seconds by stage</b>") == 2
    assert "Calibration of the PRM" in page and page.count("Reward along a response: ") == 2


def test_events_are_told_by_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    events = [
        {"step": 0, "kind": "start", "text": "begins", "time": 1.8e9},
        {"step": 1, "kind": "warning", "text": "step 2: engine and trainer differ", "time": 1.8e9},
        {"step": 4, "kind": "start", "text": "goes on after step 4", "time": 1.8e9 + 60},
        {"step": 4, "kind": "message", "text": "step 5/6", "time": "NaN"},
        {"step": 5, "kind": "warning", "text": "disk is full", "time": "NaN"},
    ]
    write_lines(folder / "events.jsonl", events)
    (run,) = read_runs([folder])
    assert [(event.step, event.kind, event.text) for event in run.events] == [
        (2, "warning", "engine and trainer differ"), (3, "engine restart", "1 engine process(es) started again"),
        (4, "resumed", "goes on after step 4"), (5, "warning", "disk is full"),
    ]  # fmt: skip
    assert run.events[0].time == "2027-01-15 08:00:00" and run.events[3].time == ""
    assert "What happened when" in page_of(folder)


def old_metrics(text: str) -> str:
    """Of a version that knew three metrics."""
    rows = [json.loads(line) for line in text.splitlines()]
    return "".join(json.dumps({key: row[key] for key in ("step", "outcome/mean")}) + "\n" for row in rows)


BROKEN = {
    "cut": ("metrics.jsonl", lambda text: text[:-40], "metrics.jsonl: 1 unreadable line(s) passed over"),
    "no step": ("metrics.jsonl", lambda text: '[1]\n{"step": "x"}\n' + text, "metrics.jsonl: 2 unreadable line(s)"),
    "not finite": ("metrics.jsonl", lambda text: text.replace("0.75", '"NaN"').replace("0.7", '"Infinity"'), "Entropy"),
    "words": ("metrics.jsonl", lambda text: text.replace("0.75", "[1]").replace("2.0", '"x"'), "Entropy"),
    "old": ("metrics.jsonl", old_metrics, "Not drawn, for want of figures"),
    "no metrics": ("metrics.jsonl", lambda text: "", "no steps, so there are no curves"),
    "cut samples": ("samples.jsonl", lambda text: text[:-40], "samples.jsonl: 1 unreadable line(s) passed over"),
    "old samples": (
        "samples.jsonl",
        lambda text: re.sub(r'"(token_ends|prm_probability|step_ends)": (\[[^]]*\]|[^,]*), ', "", text),
        "no probabilities in its samples",
    ),
    "no samples": ("samples.jsonl", lambda text: "", "No response with process rewards"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_missing_is_left_out(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", samples=random_samples([2, 4], prompts=2, samples=2, tokens=20))
    file, change, said = BROKEN[name]
    edit(folder / file, change)
    assert said in page_of(folder)
    assert capsys.readouterr().err == ""


def test_one_line_says_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (empty := tmp_path / "empty").mkdir()
    run = write_run(tmp_path / "run")
    for words, said in (
        ([empty], f"{empty}: nothing of a run is in it yet"),
        ([tmp_path / "none"], "no such folder"),
        ([run, run], "given twice"),
        ([run] * 9, "9 runs are too many"),
        ([run, "--output", tmp_path], "is a folder"),
        ([run, "--output", run / "metrics.jsonl"], "exists; give --overwrite"),
        ([run, "--output", run / "metrics.jsonl" / "x.html"], "cannot be written"),
    ):
        assert main(["report", *map(str, words)]) == 2
        told = capsys.readouterr().err
        assert said in told and told.startswith("error: ") and told.count("\n") == 1
    assert not list(tmp_path.rglob("*.html")) and not list(tmp_path.rglob("*.partial"))


def test_only_a_report_is_replaced_unasked(tmp_path: Path) -> None:
    folder, mine = write_run(tmp_path / "run"), tmp_path / "mine.html"
    mine.write_text("<!doctype html> mine")
    assert main(["report", str(folder), "--output", str(mine)]) == 2 and mine.read_text() == "<!doctype html> mine"
    assert main(["report", str(folder), "--output", str(mine), "--overwrite"]) == 0
    write_lines(folder / "metrics.jsonl", [metrics_row(0)])
    assert main(["report", str(folder), "--output", str(mine)]) == 0, "an earlier report is replaced"
    assert "<td>0</td>" in mine.read_text()


def test_the_quick_start_ends_by_naming_it() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = text[text.index("\nquickstart:") :].split("\n\n")[0]
    assert "prime-megatron report runs/quickstart" in recipe.splitlines()[-1]
