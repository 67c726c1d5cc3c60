"""vLLM with a mixture of experts, whole and with every expert split over two ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.mixture import Mixture, check_training, mixture

pytestmark = pytest.mark.vllm
LAYOUTS = {
    "tp1": {"family": "qwen3_moe"},
    "tp2": {"family": "qwen3_moe", "tensor": 2},
    "mixtral_tp1": {"family": "mixtral"},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def vllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixture]:
    with mixture("vllm", tmp_path_factory.mktemp(request.param), **LAYOUTS[request.param]) as made:
        yield made


def test_experts_written_in_place(vllm: Mixture) -> None:
    vllm.check_live()


def test_experts_sent_in_buckets(vllm: Mixture) -> None:
    vllm.check_buckets()


def test_training_over_expert_ranks_with_an_engine_over_both(tmp_path: Path) -> None:
    check_training("vllm", tmp_path)
