"""SGLang with a mixture of experts: whole, every expert split over two ranks, and half of the experts on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.mixture import Mixture, check_training, mixture

pytestmark = pytest.mark.sglang
LAYOUTS = {
    "tp1": {"family": "qwen3_moe"},
    "tp2": {"family": "qwen3_moe", "tensor": 2},
    "tp2_ep2": {"family": "qwen3_moe", "tensor": 2, "expert": 2},
    "mixtral_tp2_ep2": {"family": "mixtral", "tensor": 2, "expert": 2},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def sglang(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixture]:
    with mixture("sglang", tmp_path_factory.mktemp(request.param), **LAYOUTS[request.param]) as made:
        yield made


def test_experts_written_in_place(sglang: Mixture) -> None:
    sglang.check_live()


def test_experts_sent_in_buckets(sglang: Mixture) -> None:
    sglang.check_buckets()


def test_training_over_expert_ranks_with_an_engine_over_both(tmp_path: Path) -> None:
    check_training("sglang", tmp_path, expert=2)
