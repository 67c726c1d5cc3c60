"""A response becomes text once, on one rank, and reaches samples.jsonl and a recording from there."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from tests.support.resume_runs import toy, train


def write_down_decodes(folder: Path) -> None:
    """In a rank, before training: every decoded response is a line in a file of this process."""
    decode = Tokenizer.decode

    def written(self: Tokenizer, token_ids: Sequence[int], **options: Any) -> str:
        with open(folder / f"decoded-{os.environ['RANK']}", "a") as file:
            file.write(json.dumps(list(token_ids)) + "\n")
        return decode(self, token_ids, **options)

    Tokenizer.decode = written  # type: ignore[method-assign]


def test_each_response_is_decoded_once_over_all_ranks(tmp_path: Path) -> None:
    record = tmp_path / "groups.jsonl"
    config = toy(tmp_path, run={"steps": 2}, rollout={"record": str(record)}, log={"samples_per_step": 4})
    assert train(config, 2, fault=functools.partial(write_down_decodes, tmp_path)) == {0}

    output = tmp_path / "straight"
    state = json.loads((output / "checkpoints" / "step-00000002" / "state.json").read_text())["parts"]
    recorded = [group for line in record.read_text().splitlines() for group in json.loads(line)["groups"]]
    groups = recorded + [row["group"] for row in state["collector"]["waiting"]]
    assert len(recorded) == 10 and len(groups) == state["prompts"]["draw"], "nothing was filtered out"

    by_rank = [(tmp_path / f"decoded-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert min(map(len, by_rank)) > 0
    decoded = Counter(line for lines in by_rank for line in lines)
    assert decoded == Counter(json.dumps(sample["token_ids"]) for group in groups for sample in group["samples"])

    tokenizer = load_tokenizer(config["models"]["policy"]["path"])
    for group in groups:
        for sample in group["samples"]:
            assert sample["text"] == tokenizer.decode(sample["token_ids"]) and sample["reason"]
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
    for row in rows:
        assert row["response"] == tokenizer.decode(row["token_ids"]) and row["reason"]
        assert row["data_source"] == "toy" and len(row["advantages"]) == len(row["token_ids"])
