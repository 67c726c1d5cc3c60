"""The pages themselves: all are reachable, pictures and files exist, quoted errors are those of the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tests.support.doc_commands import ROOT, blocks_of, outside_fences, pages

DOCS = ROOT / "docs"
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = [*(ROOT / "prime_megatron").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]


def in_nav(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from in_nav(inner)


def test_every_page_is_in_the_navigation_once() -> None:
    found = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
    assert sorted(in_nav(SITE["nav"])) == found


@pytest.mark.parametrize("page", pages())
def test_what_a_page_shows_and_links_is_there(page: str) -> None:
    """Files only: `make docs` looks at anchors. README and its neighbours are no pages of the site."""
    missing = [
        f"{page}:{number}: {target}"
        for number, line in outside_fences(page)
        for target in LINK.findall(line)
        if "://" not in target and not target.startswith("#")
        if not ((ROOT / page).parent / target.partition("#")[0]).exists()
    ]
    assert missing == []


def test_the_site_fetches_nothing() -> None:
    """No font, picture or script of another server; a picture that needs a program of the reader's is none."""
    assert SITE["theme"]["font"] is False and not SITE.get("extra_javascript") and not SITE.get("extra_css")
    for page in pages():
        assert all(block.language != "mermaid" for block in blocks_of(page)), page
        fetched = re.compile(r"!\[[^\]]*\]\(https?:|<(?:script|img)\b")
        assert [line for _, line in outside_fences(page) if fetched.search(line)] == []


def test_lists_begin_behind_an_empty_line() -> None:
    """GitHub makes a list of them anyway, the site does not."""
    item = re.compile(r"\s*(?:[-*]|\d+\.) ")
    wrong = []
    for page in pages():
        before, within = "", False
        for number, line in outside_fences(page):
            if item.match(line) and before.strip() and not within:
                wrong.append(f"{page}:{number}: {line}")
            within = bool(item.match(line)) or (within and (line.startswith("  ") or not line.strip()))
            before = line
    assert wrong == []


def test_pages_that_the_code_names_exist() -> None:
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in [*CODE, ROOT / "Makefile", ROOT / "CHANGELOG.md", *(ROOT / "examples").rglob("*.*")]
        if path.is_file() and path.suffix != ".pyc"
        for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert [entry for entry in sorted(named) if not (ROOT / entry[1]).is_file()] == []


@cache
def texts() -> tuple[str, ...]:
    """Every text of the code, in f-strings the pieces between what is put in; literals in a row are one."""
    found = set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return tuple(found)


def quoted() -> Iterator[tuple[str, str]]:
    """(where, piece between `...`) of the lines in the troubleshooting page's blocks."""
    for block in blocks_of("docs/troubleshooting.md"):
        for line in block.text.splitlines():
            for piece in re.sub(r"^(?:error|warning): ", "", line).split("..."):
                if len(piece.strip(" .,;:()")) >= 3:
                    yield block.where, piece.strip(" :")


def test_quoted_errors_are_those_of_the_code() -> None:
    pieces = list(quoted())
    assert len(pieces) > 50
    assert [(where, piece) for where, piece in pieces if not any(piece in text for text in texts())] == []
    assert not any("no run has ever said this" in text for text in texts())
