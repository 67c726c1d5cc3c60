"""Which layers a model gets, and what the start of a run says of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from prime_megatron.config.model import Layers
from prime_megatron.errors import InputError
from prime_megatron.mcore import spec

CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    spec._missing_for_te.cache_clear()
    yield
    spec._missing_for_te.cache_clear()


def have_te(monkeypatch: pytest.MonkeyPatch, *, pytorch: bool) -> None:
    """A GPU and Transformer Engine 9.9.0: its core, and where asked for its PyTorch part."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(spec, "version", lambda name: "9.9.0")
    monkeypatch.setattr(spec, "installed", lambda: "0.19.2")
    core = ModuleType("transformer_engine")
    core.__path__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformer_engine", core)
    monkeypatch.delitem(sys.modules, "transformer_engine.pytorch", raising=False)
    if pytorch:
        monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", ModuleType("transformer_engine.pytorch"))


@CPU_ONLY
def test_a_cpu_gets_ours() -> None:
    assert not spec.takes_te(Layers.auto) and not spec.takes_te(Layers.local)
    assert "(no CUDA device)" in spec.describe_layers(Layers.auto, torch.float32)
    assert "(models.layers local)" in spec.describe_layers(Layers.local, torch.float32)


@CPU_ONLY
def test_asked_for_where_they_cannot_be_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^models.layers: te .*\(no CUDA device\); set it to auto or local$"):
        spec.takes_te(Layers.te)


def test_the_core_alone_is_no_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engines' GPU environments have it: the package is there, its PyTorch part is not."""
    have_te(monkeypatch, pytorch=False)
    assert not spec.takes_te(Layers.auto)
    assert "transformer_engine.pytorch does not import" in spec.describe_layers(Layers.auto, torch.float32)
    with pytest.raises(InputError, match=r"transformer_engine\.pytorch does not import"):
        spec.takes_te(Layers.te)


def test_auto_takes_them_only_where_the_pair_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    have_te(monkeypatch, pytorch=True)
    assert spec.takes_te(Layers.te) and not spec.takes_te(Layers.auto) and not spec.takes_te(Layers.local)
    said = spec.describe_layers(Layers.auto, torch.float32)
    assert "(Transformer Engine 9.9.0 has not been run with megatron-core 0.19.2; models.layers te takes it)" in said
    monkeypatch.setattr(spec, "TE_RUN", {("9.9.0", "0.19.2")})
    assert spec.takes_te(Layers.auto) and not spec.takes_te(Layers.local)
    assert spec.describe_layers(Layers.auto, torch.float32) == (
        "layers: Transformer Engine 9.9.0 (run with this megatron-core); attention: Transformer Engine"
    )
