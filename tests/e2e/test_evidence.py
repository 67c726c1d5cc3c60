"""What a run rejected and what it answered at an evaluation is in samples.jsonl, also of a step that starves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import run_ranks
from tests.support.toy import make_model, make_prompts, settings


def starve_rank(config: str) -> str:
    """A run on this rank that cannot fill its batch; returns what it says of that."""
    from prime_megatron.config import TrainConfig
    from prime_megatron.errors import RunError
    from prime_megatron.trainer import train

    try:
        return f"exit code {train(TrainConfig.model_validate_json(config), resume=None, overwrite=False)}"
    except RunError as error:
        return str(error)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("evidence")
    prompts = make_prompts(folder / "prompts.jsonl", count=12)
    config = settings(
        make_model(folder / "model"), prompts, folder / "out",
        data={"eval": [prompts]},
        rollout={"filter": {"lower": 0.2, "upper": 0.8, "max_rounds": 2}},
        eval={"samples_per_prompt": 2, "max_prompts": 6},
        log={"rejected_per_step": 7, "held_out_per_eval": 8},
    )  # fmt: skip
    run_ranks(starve_rank, 2, json.dumps(config), timeout_s=240.0)
    return [json.loads(line) for line in (Path(folder) / "out" / "samples.jsonl").read_text().splitlines()]


def test_rejected_and_held_out_responses_are_written_with_what_judged_them(rows: list[dict[str, Any]]) -> None:
    assert Counter((row["step"], row["kind"]) for row in rows) == {
        (0, "held_out"): 6, (0, "held_out_sampled"): 8, (1, "rejected"): 7,
    }  # fmt: skip
    for row in rows:
        assert row["response"] is not None and row["reason"], "texts of both ranks"
        assert (row["ability"], row["data_source"]) == ("math", "toy")
        a, b = row["prompt"].split("<user>")[1].split("?")[0].split("+")
        assert row["ground_truth"] == str(int(a) + int(b))
        assert row["verdict"] in ("wrong", "no_answer") and row["outcome"] == 0.0
        assert row["advantages"] == []
    rejected = [row for row in rows if row["kind"] == "rejected"]
    assert len({row["uid"] for row in rejected}) == 7 and {row["filter"] for row in rejected} == {"too_hard"}
    assert [(row["uid"], row["sample"]) for row in rows if row["kind"] == "held_out_sampled"] == [
        (f"eval-{n}", sample) for n in range(4) for sample in (0, 1)
    ]
