"""vLLM's reading of config.json against the trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines import readings

pytestmark = pytest.mark.vllm


def test_every_family(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    from prime_megatron.rollout.vllm.reading import check_reading

    def read(folder: str) -> Any:
        arguments = {"load_format": "dummy", "dtype": "float32", "skip_tokenizer_init": True, "max_model_len": 128}
        return EngineArgs(model=folder, **arguments).create_model_config()

    readings.check(tmp_path, read, check_reading)
