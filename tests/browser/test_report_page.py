"""The report of a run in a browser: the heat-map, its filter and search, values under the pointer, and no request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from prime_megatron.cli.main import main
from tests.browser.conftest import LIMIT_S, requests
from tests.support.report_runs import NASTY, sample_row, write_run
from tests.support.resume_runs import toy, train

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, as the quick start's but of two steps: its folder, with a report."""
    folder = tmp_path_factory.mktemp("run")
    config = toy(
        folder, run={"steps": 2}, checkpoint={"every": 0, "export_final": False},
        data={"eval": [str(folder / "prompts.jsonl")]}, eval={"every": 1},
    )  # fmt: skip
    assert train(config, 1) == {0}
    output = folder / "straight"
    assert main(["report", str(output)]) == 0
    return output


def rows_of(run: Path, kind: str = "trained") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["kind"] == kind]


def open_page(browser: Chrome, page: Path) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())
    until(browser, lambda: responses(browser))


def until(browser: Chrome, ready: Callable[[], Any]) -> Any:
    return WebDriverWait(browser, LIMIT_S).until(lambda _: ready())


def responses(browser: Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, "#siblings .response")


def choose(browser: Chrome, name: str, value: str, said: str) -> None:
    """Set a filter, and wait for what the page then says of the number of responses."""
    Select(browser.find_element(By.NAME, name)).select_by_value(value)
    until(browser, lambda: said in browser.find_element(By.ID, "count").text)


def shown_texts(browser: Chrome) -> list[str]:
    return [element.get_attribute("textContent") or "" for element in browser.find_elements(By.CSS_SELECTOR, ".text")]


def test_every_token_has_its_color_and_reward(run: Path, browser: Chrome) -> None:
    open_page(browser, run / "report.html")
    last = max(row["draw"] for row in rows_of(run))
    siblings = [row for row in rows_of(run) if row["draw"] == last]
    cards = responses(browser)
    assert len(cards) == len(siblings) == 2, "siblings stand side by side"
    assert cards[0].rect["y"] == cards[1].rect["y"] and cards[0].rect["x"] < cards[1].rect["x"]
    for card, row in zip(cards, siblings, strict=True):
        tokens = card.find_elements(By.CSS_SELECTOR, ".tok")
        pieces = [token.get_attribute("textContent") for token in tokens]
        starts = [0, *row["token_ends"]]
        assert pieces == [row["response"][a:b] for a, b in zip(starts, row["token_ends"])]
        largest = max(map(abs, row["process_rewards"]))
        for token, reward in zip(tokens, row["process_rewards"], strict=True):
            assert float(token.get_attribute("data-reward") or 0) == pytest.approx(reward, abs=largest / 1500)
        visible = [index for index, piece in enumerate(pieces) if piece and not piece.isspace()]
        place = max(visible, key=lambda index: abs(row["process_rewards"][index]))
        colors = {token.value_of_css_property("background-color") for token in tokens}
        assert len(colors) > 2
        ActionChains(browser).scroll_to_element(tokens[place]).move_to_element(tokens[place]).perform()
        tip = browser.find_element(By.ID, "tip")
        until(browser, lambda tip=tip, place=place: f"token {place + 1}:" in tip.text)
        said = tip.text.split("\n")[0].removeprefix("reward ").replace("−", "-")
        assert float(said) == pytest.approx(row["process_rewards"][place], rel=0.006)
    assert browser.get_log("browser") == []
    assert requests(browser) == [(run / "report.html").as_uri()]


def test_filters_count_what_the_file_has(run: Path, browser: Chrome) -> None:
    open_page(browser, run / "report.html")
    rows = rows_of(run)
    counts = {
        "all": len(rows),
        "right": sum(row["outcome"] > 0.5 for row in rows),
        "wrong": sum(row["outcome"] <= 0.5 for row in rows),
        "disagree": sum((row["prm_probability"] > 0.5) != (row["outcome"] > 0.5) for row in rows),
    }
    assert len({*counts.values()}) > 1
    choose(browser, "kind", "trained", f"{len(rows)} of {len(rows)} responses")
    for name, count in counts.items():
        choose(browser, "show", name, f"({count} of {len(rows)} responses" if count else "nothing matches")
        assert len(browser.find_elements(By.CSS_SELECTOR, ".response.match")) == 0 or count
    assert browser.get_log("browser") == []


def test_search_jump_and_text_that_would_be_html(tmp_path: Path, browser: Chrome) -> None:
    pieces = ["one ", NASTY, "\n", "two"]
    samples = [
        sample_row(step, step, sample, pieces if (step, sample) == (2, 1) else ["plain ", "😀", " x"], rewards)
        for step in (1, 2, 3)
        for sample in (0, 1)
        for rewards in ([[0.25, -2.0, 0.0, 0.5]] if (step, sample) == (2, 1) else [[0.1, 0.2, -0.1]])
    ]
    page = write_run(tmp_path / "run", samples=samples) / "report.html"
    assert main(["report", str(page.parent)]) == 0
    open_page(browser, page)
    browser.find_element(By.NAME, "search").send_keys("</script><SCRIPT>")
    until(browser, lambda: "1 of 6 responses, in 1 of 3" in browser.find_element(By.ID, "count").text)
    cards = responses(browser)
    assert ["match" in (card.get_attribute("class") or "") for card in cards] == [False, True]
    assert NASTY in shown_texts(browser)[1]
    assert [one.text for one in cards[1].find_elements(By.CSS_SELECTOR, ".sum")] == ["−1.75", "+0.50"]
    # From the table of the least rewards to the token itself.
    browser.find_elements(By.CSS_SELECTOR, "a.go")[-1].click()
    browser.execute_script("document.querySelectorAll('a.go').forEach((a) => a.dataset.token === '1' && a.click())")
    here = until(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".tok.here"))
    assert here[0].get_attribute("textContent") == NASTY
    assert browser.title == "run: report" and browser.get_log("browser") == []
    assert requests(browser) == [page.as_uri()]


def test_a_picture_shows_the_values_under_the_pointer(tmp_path: Path, browser: Chrome) -> None:
    page = write_run(tmp_path / "run", samples=[sample_row(1, 0, 0, ["a"], [1.0])]) / "report.html"
    assert main(["report", str(page.parent)]) == 0
    open_page(browser, page)
    figure = browser.find_element(By.XPATH, "//figure[.//b='Outcome in training']")
    value = figure.find_element(By.CSS_SELECTOR, "output")
    assert value.text == "0.56", "the last step's, without a pointer"
    plot = figure.find_element(By.CSS_SELECTOR, ".plot")
    ActionChains(browser).scroll_to_element(plot).move_to_element(plot).perform()
    until(browser, lambda: figure.find_element(By.CSS_SELECTOR, ".at").text == "step 3")
    assert value.text == "0.53"
    other = browser.find_element(By.XPATH, "//figure[.//b='Entropy']//output")
    assert float(other.get_attribute("textContent") or "nan") == 0.25, "all pictures show the same step"


def test_colors_follow_the_reader(tmp_path: Path, browser: Chrome) -> None:
    page = write_run(tmp_path / "run", samples=[sample_row(1, 0, 0, ["a", "b"], [1.0, -1.0])]) / "report.html"
    assert main(["report", str(page.parent)]) == 0
    grounds = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        open_page(browser, page)
        grounds.append(browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color"))
        marks = [
            one.value_of_css_property("box-shadow") for one in browser.find_elements(By.CSS_SELECTOR, ".text .tok")
        ]
        assert "0px 2px" in marks[0] and "0px -2px" in marks[1], "a bar above, a bar below: not color alone"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds[0] != grounds[1]
