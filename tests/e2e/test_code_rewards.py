"""Programs as rewards in whole runs: Eurus-2-RL-Data's parquet, resumes, figures by ability, refusals at the start."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prime_megatron.config import CodeConfig
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.verify.code.check import refusal
from tests.support.resume_runs import assert_same, at, outcome, said, stopped_at, toy, train

pytestmark = pytest.mark.skipif(
    refusal(CodeConfig()) is not None, reason="this kernel cannot hold programs: no Landlock, or no seccomp"
)
EURUS = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("ground_truth", pa.string()), ("style", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string())])),
    ]
)
"""Eurus-2-RL-Data's columns."""


def speak_python() -> None:
    """In a rank, before training: a response reads as a program, or as a boxed answer, by its first token.

    A model that has learnt nothing writes neither; what is run, scored and reduced is the real thing.
    """

    def decode(self: Tokenizer, token_ids: Sequence[int], **options: Any) -> str:
        first = int(token_ids[0]) if len(token_ids) else 0
        if first % 4 == 3:
            return f"\\boxed{{{first % 10}}}"
        return f"```python\ndef f(x):\n    return x if x < 2 else x + {first % 4}\n```\n\\boxed{{{first % 10}}}"

    Tokenizer.decode = decode  # type: ignore[method-assign]


def row(index: int, ability: str, source: str, truth: str) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": f"{index % 10}+{index % 7}?"}],
        "ability": ability,
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": {"index": index, "split": "train"},
    }


def calls(*pairs: tuple[int, int]) -> str:
    return json.dumps({"inputs": [[x] for x, _ in pairs], "outputs": [y for _, y in pairs], "fn_name": "f"})


def mixed_rows(count: int = 40) -> list[dict[str, Any]]:
    """Math and code by turns; a program of `speak_python` passes all, half or none of its tests."""
    rows = []
    for index in range(count):
        if index % 2:
            rows.append(row(index, "math", "numina_cn_k12", str(index % 10)))
        else:
            source = ("apps", "taco")[index // 2 % 2]
            rows.append(row(index, "code", source, calls((1, 1), (2, 2 + index // 2 % 3))))
    return rows


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    """As the data set's own files: every column from a numpy array of objects."""
    columns = []
    for field in EURUS:
        values = np.empty(len(rows), dtype=object)
        values[:] = [np.array(r[field.name], dtype=object) if field.name == "prompt" else r[field.name] for r in rows]
        columns.append(pa.array(values, type=field.type, from_pandas=True))
    pq.write_table(pa.Table.from_arrays(columns, schema=EURUS), path)
    return str(path)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_file_of_eurus_schema_trains(tmp_path: Path) -> None:
    rows = mixed_rows(24)
    large = {"inputs": ["7 " * 1_250_000, "1"], "outputs": ["7 " * 1_250_000, "1"]}
    rows[4]["reward_model"]["ground_truth"] = json.dumps(large)
    assert len(rows[4]["reward_model"]["ground_truth"]) > 5_000_000
    data = {"train": [write_parquet(tmp_path / "train.parquet", rows)], "shuffle": False}
    config = toy(tmp_path, run={"steps": 2}, data=data, log={"tensorboard": True}, eval={"max_prompts": 8})
    config["data"]["eval"] = data["train"]
    assert train(config, 2, fault=speak_python) == {0}
    output = tmp_path / "straight"
    first, last = metrics(output)[1], metrics(output)[-1]
    abilities = {key.rpartition("/")[2] for key in first if key.startswith("rollout/outcome/ability/")}
    sources = {key.rpartition("/")[2] for key in first if key.startswith("rollout/outcome/data_source/")}
    assert abilities == {"code", "math"}
    assert sources == {"apps", "taco", "numina_cn_k12"}
    for key in ("rollout/pass_rate/ability/code", "prm/accuracy/ability/math", "prm/accuracy/data_source/taco"):
        assert 0.0 <= first[key] <= 1.0
    assert 0.0 <= last["eval/accuracy/ability/code"] <= 1.0
    assert last["eval/accuracy"] <= last["eval/score"]
    assert first["speed/verify_tests"] > 0 and first["speed/verify_tests_per_s"] > 0
    assert 0.0 <= first["speed/verify_wait_share"] <= 1.0
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    verdicts = {sample["verdict"] for sample in samples}
    assert {"correct", "wrong"} <= verdicts <= {"correct", "wrong", "no_code", "exception"}
    assert 0.5 in {sample["outcome"] for sample in samples}, "no program passed a part of its tests"
    for line in ("code  outcome", "math  outcome", "apps  outcome"):
        assert line in said(output)


def test_a_resumed_run_with_programs_changes_no_bit(tmp_path: Path) -> None:
    data = {"train": [write_parquet(tmp_path / "train.parquet", mixed_rows())]}
    config = toy(tmp_path, run={"steps": 3}, data=data)
    assert train(config, 2, fault=speak_python) == {0}
    stopped_at(tmp_path / "straight", 1, tmp_path / "out")
    assert train(at(config, tmp_path / "out"), 2, resume="auto", fault=speak_python) == {0}
    assert_same(outcome(tmp_path / "out"), outcome(tmp_path / "straight"))


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(RuntimeError) as caught:
        train(config, 1)
    return str(caught.value)


def test_bad_ground_truths_are_refused_or_skipped(tmp_path: Path) -> None:
    rows = mixed_rows(20)
    rows[2]["reward_model"]["ground_truth"] = json.dumps({"inputs": ["1"], "outputs": []})
    rows[6]["reward_model"]["ground_truth"] = "{"
    data = {"train": [write_parquet(tmp_path / "train.parquet", rows)]}
    config = toy(tmp_path, run={"steps": 1}, data=data)
    message = refused(config)
    assert "train.parquet, row 3: ground truth: 1 inputs and 0 outputs" in message
    assert not (tmp_path / "straight").exists()
    skipping = at(config, tmp_path / "skipped", data={"bad_truth": "skip"})
    assert train(skipping, 1, fault=speak_python) == {0}
    assert "2 data.bad_truth: rows without a usable ground truth left out" in said(tmp_path / "skipped")
    without = at(config, tmp_path / "without", data={"skip_abilities": ["code"]})
    assert train(without, 1, fault=speak_python) == {0}
    assert "10 data.skip_abilities: rows of ability 'code' left out" in said(tmp_path / "without")
    assert "rollout/outcome/ability/code" not in metrics(tmp_path / "without")[1]
