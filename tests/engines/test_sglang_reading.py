"""SGLang's reading of config.json against the trainer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engines import readings

pytestmark = pytest.mark.sglang


def test_every_family(tmp_path: Path) -> None:
    from prime_megatron.rollout.sglang.reading import check_reading, model_config

    def read(folder: str) -> Any:
        arguments = {"trust_remote_code": False, "json_model_override_args": "{}", "dtype": "float32"}
        return model_config({"model_path": folder, **arguments})

    readings.check(tmp_path, read, check_reading)
