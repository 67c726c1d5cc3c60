"""README's tree and the package are the same: every module is named, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "prime_megatron"


def tree() -> str:
    """The tree's lines about the package."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("    prime_megatron/\n")
    return text[start : text.index("\n    examples/", start)]


def test_every_module_is_in_the_tree() -> None:
    words = set(re.findall(r"[a-z0-9_]+", tree()))
    modules = {path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")}
    # The jail's smaller parts are behind the dots of their line.
    inner = {path.stem for path in (PACKAGE / "verify" / "code" / "jail").glob("*.py")}
    assert modules - inner - words == set()


def test_every_file_of_the_tree_is_there() -> None:
    found = {path.name for path in PACKAGE.rglob("*") if path.suffix in (".py", ".sh")}
    assert set(re.findall(r"\b[a-z0-9_]+\.(?:py|sh)\b", tree())) - found == set()
    folders = {path.name for path in PACKAGE.rglob("*") if path.is_dir()} | {"prime_megatron"}
    assert set(re.findall(r"^ +([a-z_]+)/", tree(), re.M)) - folders == set()
