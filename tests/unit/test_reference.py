"""The reference pages are what the code says."""

from __future__ import annotations

import pytest

from prime_megatron.config.keys import keys_of
from tools.reference import CONFIGS, all_metrics, pages


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_pages_are_current(path) -> None:
    current = path.exists() and path.read_text(encoding="utf-8") == pages()[path]
    assert current, f"{path.name} is out of date: run python tools/reference.py"


def test_every_key_has_one_row_with_a_meaning() -> None:
    (text,) = (text for path, text in pages().items() if path.name == "config.md")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    keys = [key.name for root in CONFIGS.values() for key in keys_of(root)]
    assert sorted(row[0].strip("| `") for row in rows) == sorted(keys)
    assert all(len(row[-1].strip(" |")) > 10 for row in rows)


def test_metrics_have_one_row_each() -> None:
    names = [metric.name for metric in all_metrics()]
    assert len(set(names)) == len(names)
    assert all(metric.unit and metric.meaning.endswith(".") for metric in all_metrics())
