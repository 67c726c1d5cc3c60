"""A suite of two small sets, to be evaluated in training."""

from __future__ import annotations

import json
from pathlib import Path

SUITE = """\
seed: 5
block: 6
defaults: {file: sums.jsonl, question: q, answer: a, id: name, answer_pattern: "([0-9])", max_tokens: 12}
sets:
  greedy: {}
  drawn: {n: 4, temperature: 1.0}
"""


def make_suite(folder: Path, count: int = 4) -> dict[str, str]:
    """The keys of `eval` that name it; its questions lie in `folder`."""
    folder.mkdir()
    rows = [{"name": f"sum-{n}", "q": f"{n}+1?", "a": n + 1} for n in range(count)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "suite.yaml").write_text(SUITE)
    return {"suite": str(folder / "suite.yaml"), "suite_data": str(folder)}
