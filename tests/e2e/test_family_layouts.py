"""The parity bench's own rows: three steps of families that test_layouts.py has not, experts first among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from prime_megatron.metrics.jsonl import read_jsonl
from tools.benches import parity

ROWS = [
    # Expert parallelism with and without tensor parallelism; tensor parallelism around experts that are whole, whose
    # gradients must then be summed over the tensor-parallel ranks.
    (["qwen3_moe", "mixtral"], ["ep2", "ep2-tp2", "tp2-sp"]),
    (["llama3_tied", "qwen3", "mistral_window"], ["tp2-pp2-sp"]),
]


@pytest.mark.parametrize(("families", "layouts"), ROWS, ids=["experts", "dense"])
def test_layout_changes_nothing(families: list[str], layouts: list[str], tmp_path: Path) -> None:
    rows = parity.measure(tmp_path, families, layouts, timeout_s=120.0)
    assert [(row["family"], row["layout"]) for row in rows] == [
        (family, parity.LAYOUTS[layout][0]) for family in families for layout in layouts
    ]
    for row in rows:
        assert row["error"] is None, row
        assert row["max_logit_difference"] <= parity.BOUNDS["moe" if parity.moe(row["family"]) else "dense"], row
        assert row["max_metric_difference"] <= parity.BOUNDS["metric"], row
    for family in families:
        # The PRM is its reference still. Scored in micro-batches of other sizes the two would differ by rounding, which
        # the norm makes a reward of.
        first = read_jsonl(tmp_path / family / "replayed" / "metrics.jsonl")[1]
        assert first["process_reward/min"] == first["process_reward/max"] == 0.0, family


def test_a_failed_row_is_named_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a setting that there is not; a row that hangs ends the same way, after its timeout."""
    bad = ("TP2", 2, {"tensor": 2, "nonsense": 1})
    monkeypatch.setattr(parity, "LAYOUTS", {"bad": bad, "pp2": parity.LAYOUTS["pp2"]})
    rows = parity.measure(tmp_path, ["qwen2"], ["bad", "pp2"], timeout_s=60.0)
    assert [row["error"] is None for row in rows] == [False, True]
    assert "nonsense" in rows[0]["error"] and rows[0]["max_logit_difference"] is None
    assert rows[1]["max_metric_difference"] <= parity.BOUNDS["metric"]
