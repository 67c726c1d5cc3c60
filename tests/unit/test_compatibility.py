"""docs/compatibility.md is what the locks say, and the locks say what the code takes for tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from prime_megatron.mcore.versions import TESTED
from tools import compatibility


def test_the_page_is_current() -> None:
    assert compatibility.TARGET.read_text() == compatibility.document(), "run python tools/compatibility.py"


def test_a_changed_pin_makes_it_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lock in compatibility.LOCKS.glob("*.lock"):
        text = lock.read_text()
        if lock.name == "vllm-gpu-py313.lock":
            assert "\nvllm==0.33.0\n" in text
            text = text.replace("\nvllm==0.33.0\n", "\nvllm==0.34.0\n")
        (tmp_path / lock.name).write_text(text)
    monkeypatch.setattr(compatibility, "LOCKS", tmp_path)
    assert compatibility.TARGET.read_text() != compatibility.document()
    assert "vllm 0.34.0" in compatibility.document()


def test_a_pair_that_has_run_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "| 2.20.2 | 0.19.2 |" not in compatibility.document()
    monkeypatch.setattr(compatibility, "TE_RUN", {("2.20.2", "0.19.2")})
    assert "| 2.20.2 | 0.19.2 |" in compatibility.document() and compatibility.NOT_RUN not in compatibility.document()


def test_every_python_is_there_with_its_release() -> None:
    lines = [line.split(" | ") for line in compatibility.table().splitlines()[2:]]
    release_of = {python: release for release, pythons in TESTED.items() for python in pythons}
    assert {line[0].strip("| ") for line in lines} == release_of.keys()
    assert all(line[4] == release_of[line[0].strip("| ")] for line in lines)
