"""vLLM in the trainer's processes, where it is not installed; with it: tests/engines/test_vllm_in_process.py."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from prime_megatron.errors import InputError
from prime_megatron.rollout.process.driver import DriverSettings
from prime_megatron.rollout.process.replica import Member
from prime_megatron.rollout.vllm.in_process import InProcessEngine
from prime_megatron.weights.manifest import Manifest


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_engine_is_one_line_with_what_to_do() -> None:
    settings = DriverSettings(
        model_path="model", device="cpu", dtype="float32", tensor=1, max_tokens=20, max_concurrent=8,
        end_token_ids=(1,), seed=0, trust_remote_code=False, memory_fraction=0.5, cpu_cache_bytes=1,
        can_sleep=True, in_process=True,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"vllm cannot start: No module named 'vllm'; .*make_env.py vllm"):
        InProcessEngine(Member(0, 1, 0, 0, None), settings, True, Manifest([[]], torch.float32, 1))
