"""Which layers a model gets, and what the start of a run says of it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from prime_megatron.mcore import spec


@pytest.fixture(autouse=True)
def asked_anew() -> object:
    spec._missing_for_engine.cache_clear()
    yield
    spec._missing_for_engine.cache_clear()


def test_a_cpu_gets_ours() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert not spec.has_transformer_engine()
    assert "(no CUDA device)" in spec.describe_layers(torch.float32)


def test_the_core_alone_is_no_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engines' GPU environments have it: the package is there, its PyTorch part is not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    core = ModuleType("transformer_engine")
    core.__path__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_engine", core)
    monkeypatch.delitem(sys.modules, "transformer_engine.pytorch", raising=False)
    assert not spec.has_transformer_engine()
    assert "transformer_engine.pytorch does not import" in spec.describe_layers(torch.float32)
    spec._missing_for_engine.cache_clear()
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", ModuleType("transformer_engine.pytorch"))
    assert spec.has_transformer_engine()
    assert spec.describe_layers(torch.float32).startswith("layers: Transformer Engine")
