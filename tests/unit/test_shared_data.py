"""A clone alone passes: every test that reads data beside the repository (../shared) skips where it is not there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = [path for path in TESTS.rglob("*.py") if path != Path(__file__) and '"shared" /' in path.read_text("utf-8")]


def names_in(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} | {
        inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)
    }


def assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def unguarded(source: str) -> list[str]:
    """Tests that read the data, by themselves or by a function or a fixture of the file, and have no skipif."""
    tree = ast.parse(source)
    marks = {name for name, value in assigned(tree) if "skipif" in ast.unparse(value)}
    if "pytestmark" in marks:
        return []
    reads = {name for name, value in assigned(tree) if "'shared'" in ast.unparse(value)}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for _ in functions:
        reads |= {node.name for node in functions if any(names_in(part) & reads for part in [node.args, *node.body])}
    return [
        node.name
        for node in functions
        if node.name.startswith("test_") and node.name in reads
        if not any("skipif" in ast.unparse(mark) or names_in(mark) & marks for mark in node.decorator_list)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_reads_it_skips_without_it(path: Path) -> None:
    assert unguarded(path.read_text(encoding="utf-8")) == []


def test_a_test_that_would_fail_without_it_is_found() -> None:
    assert len(FILES) >= 4
    source = (
        'DATA = Path("x") / "shared" / "data"\n'
        'needs = pytest.mark.skipif(not DATA.is_dir(), reason="no data")\n'
        "def rows(): return read(DATA)\n"
        "def test_a(rows): ...\n"
        "@needs\ndef test_b(rows): ...\n"
        "def test_c(): ...\n"
    )
    assert unguarded(source) == ["test_a"]
