"""From every training layout into real engines of one and of two ranks, by every way: equal to the export bit for bit.

An engine starts in a minute or less and stays up over all layouts of a test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engines.layout_ranks import SPOILED, every_layout
from tests.support.models import make_model
from tests.support.ranks import run_ranks
from tests.support.toy import make_prompts, settings

Layout = dict[str, Any]
WAYS = ("live", "bucket", "broadcast", "disk")
DENSE: list[Layout] = [
    {},
    {"tensor": 2},
    {"tensor": 4},
    {"tensor": 2, "sequence": True},
    {"pipeline": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
    {"pipeline": 2, "pipeline_layers": [3, 1]},
    {"context": 2},
    {"context": 2, "tensor": 2},
    {"tensor": 2, "pipeline": 2},
]
MOE: list[Layout] = [
    {"expert": 2},
    {"expert": 4},
    {"expert": 2, "tensor": 2, "sequence": True},
    {"expert": 2, "pipeline": 2},
    {"expert_tensor": 2},
    {"expert": 2, "expert_tensor": 2, "tensor": 2, "sequence": True},
]
SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_size": 128, "vocab_size": 130},
    "qwen3_moe": {"hidden_size": 128, "moe_intermediate_size": 64, "head_dim": 32, "vocab_size": 130},
}
"""Heads of 32 for vLLM; a vocabulary that is not a multiple of what the engines pad to."""
FFN = {"vllm": 96, "sglang": 128}
"""SGLang on a CPU pads the columns of a rank to a multiple of 32."""


def ways(layouts: list[Layout]) -> list[tuple[Layout, tuple[str, ...]]]:
    """Every way for the first layout and for the last, the two ways of a run by itself for those between."""
    ends = (0, len(layouts) - 1)
    return [(layout, WAYS if place in ends else WAYS[:2]) for place, layout in enumerate(layouts)]


def check(engine: str, family: str, world: int, tensor: int, layouts: list[Layout], folder: Path) -> None:
    make_model(folder / "model", family, intermediate_size=FFN[engine], **SIZES[family])
    run = settings(
        str(folder / "model"),
        make_prompts(folder / "prompts.jsonl"),
        folder / "run",
        parallel={"timeout_s": 400.0},
        data={"max_prompt_tokens": 32},
        rollout={
            "engine": engine,
            "tensor": tensor,
            "bucket_bytes": 100_000,
            "start_timeout_s": 400.0,
            "sampling": {"max_response_tokens": 32},
            "max_concurrent": 16,
            engine: {"cpu_cache_bytes": 2**24},
        },
    )
    jobs = ways(layouts)
    told = run_ranks(every_layout, world, json.dumps(run), json.dumps(jobs), timeout_s=450.0)
    for rank, found in enumerate(told):
        last = tensor - 1
        differs = [f"memory: {SPOILED}"] if rank % tensor == last else []
        differs += [f"rank {last} says: {SPOILED}"] if rank % tensor == 0 else []
        tensors = f"1 engine tensors differ from the trainer's, the first is {SPOILED}"
        sums = f"1 tensors of engine rank {last} differ from the trainer's, the first is {SPOILED}"
        assert found.pop("spoiled by live") == [tensors, *differs]
        assert found.pop("spoiled by bucket") == [sums, *differs]
        assert found == {f"{layout} by {way}": [] for layout, these in jobs for way in these}


@pytest.mark.vllm
def test_one_process_into_vllm(tmp_path: Path) -> None:
    check("vllm", "qwen2", 1, 1, [{}], tmp_path)


@pytest.mark.vllm
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize(("family", "layouts"), [("qwen2", DENSE), ("qwen3_moe", MOE)])
def test_every_layout_into_vllm(family: str, layouts: list[Layout], tensor: int, tmp_path: Path) -> None:
    check("vllm", family, 4, tensor, layouts, tmp_path)


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("family", "layouts", "tensor"), [("qwen2", DENSE, 1), ("qwen2", DENSE, 2), ("qwen3_moe", MOE, 2)]
)
def test_every_layout_into_sglang(family: str, layouts: list[Layout], tensor: int, tmp_path: Path) -> None:
    check("sglang", family, 4, tensor, layouts, tmp_path)
