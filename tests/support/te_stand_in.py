"""Stand-ins for Transformer Engine's layers on a CPU: its signatures, the names of its weights and of what its modules
hold, as read from its source (te_signatures.json, made by tools/te_signatures.py), and the plain formulas in its place.

A call that the real class would refuse raises TypeError, a name that it does not have ImportError. On one rank.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTHS = [9, 1, 23, 6]
"""Of the packed sequences that are compared."""
TABLE = json.loads((Path(__file__).parent / "te_signatures.json").read_text())


def _bind(table: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, where the real function takes them. Raises TypeError."""
    missing = inspect.Parameter.empty
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    ordered = sorted(table["parameters"].items(), key=lambda item: not item[1])
    parameters = [inspect.Parameter(key, kind, default=missing if must else None) for key, must in ordered]
    if table["open"]:
        parameters.append(inspect.Parameter("others", inspect.Parameter.VAR_KEYWORD))
    return dict(inspect.Signature(parameters).bind(*args, **kwargs).arguments)


class _Layer(nn.Module):
    """A class of the table, by its own name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.given = _bind(TABLE["classes"][self.kind()]["init"], args, kwargs)

    @classmethod
    def kind(cls) -> str:
        """The name in the table: megatron-core inherits from these."""
        return next(one.__name__ for one in cls.__mro__ if one.__name__ in TABLE["classes"])

    def add(self, name: str, *shape: int, pattern: str | None = None) -> None:
        """A weight, if the real class has one of that name."""
        assert (pattern or name) in TABLE["classes"][self.kind()]["weights"], name
        self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=self.given.get("params_dtype"))))

    def call(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of a forward."""
        return _bind(TABLE["classes"][self.kind()]["forward"], args, kwargs)


class Linear(_Layer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given = self.given
        self.in_features, self.out_features, self.use_bias = given["in_features"], given["out_features"], given["bias"]
        self.parallel_mode = given["parallel_mode"]
        assert given["tp_size"] == 1
        self.add("weight", self.out_features, self.in_features)
        if self.use_bias:
            self.add("bias", self.out_features)

    def product(self, x: Tensor) -> Any:
        """With return_bias the bias is left to the caller."""
        if self.given["return_bias"]:
            return F.linear(x, self.weight), self.bias
        return F.linear(x, self.weight, self.bias if self.use_bias else None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.product(self.call(*args, **kwargs)["inp"])


class LayerNormLinear(Linear):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.given["normalization"] == "RMSNorm" and not self.given["zero_centered_gamma"]
        self.add("layer_norm_weight", self.in_features)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = self.call(*args, **kwargs)["inp"]
        return self.product(F.rms_norm(x, (self.in_features,), self.layer_norm_weight, self.given["eps"]))


class GroupedLinear(_Layer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_gemms = self.given["num_gemms"]
        assert not self.given["bias"] and not self.given["return_bias"]
        for index in range(self.num_gemms):
            self.add(f"weight{index}", self.given["out_features"], self.given["in_features"], pattern="weight{}")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self.call(*args, **kwargs)
        splits = given["m_splits"]
        parts = given["inp"].split(splits if isinstance(splits, list) else splits.tolist())
        return torch.cat([F.linear(part, getattr(self, f"weight{index}")) for index, part in enumerate(parts)])


class RMSNorm(_Layer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.size = self.given["hidden_size" if "hidden_size" in self.given else "normalized_shape"]
        self.add("weight", self.size)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.size,), self.weight, self.given["eps"])


class DotProductAttention(_Layer):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Causal attention of every packed sequence alone; [T, heads x width]."""
        given = self.call(*args, **kwargs)
        assert given["qkv_format"] == "thd" and given["attn_mask_type"] == "padding_causal"
        bounds = given["cu_seqlens_q"].tolist()
        assert max(end - begin for begin, end in itertools.pairwise(bounds)) <= given["max_seqlen_q"]
        heads = [given[name].transpose(0, 1) for name in ("query_layer", "key_layer", "value_layer")]
        left = (self.given.get("window_size") or (-1, 0))[0]
        outputs = []
        for begin, end in itertools.pairwise(bounds):
            distance = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
            mask = (distance >= 0) & ((distance <= left) | (left < 0))
            parts = [one[None, :, begin:end] for one in heads]
            outputs.append(F.scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True)[0])
        return torch.cat(outputs, dim=1).transpose(0, 1).flatten(1)


def get_cpu_offload_context(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    _bind(TABLE["functions"]["get_cpu_offload_context"], args, kwargs)
    return contextlib.nullcontext(), lambda hidden: hidden


def general_gemm(*args: Any, **kwargs: Any) -> list[Tensor]:
    given = _bind(TABLE["functions"]["general_gemm"], args, kwargs)
    assert given["layout"] == "TN" and given["bias"] is None
    return [F.linear(given["B"].to(given["out_dtype"]), given["A"].to(given["out_dtype"]))]


_CLASSES = (Linear, LayerNormLinear, GroupedLinear, RMSNorm, DotProductAttention)
STAND_INS = {one.__name__: one for one in (*_CLASSES, get_cpu_offload_context, general_gemm)}


def install() -> None:
    """Put them where megatron-core looks for Transformer Engine; before it is imported."""
    assert "megatron.core" not in sys.modules
    package, recipe = ModuleType("transformer_engine"), ModuleType("transformer_engine.common.recipe")
    package.__version__ = TABLE["version"]  # type: ignore[attr-defined]
    recipe.DelayedScaling = type("DelayedScaling", (), {})  # type: ignore[attr-defined]
    common = ModuleType("transformer_engine.common")
    common.recipe = recipe  # type: ignore[attr-defined]
    package.common = common  # type: ignore[attr-defined]
    found = {module.__name__: module for module in (package, common, recipe)}
    for path, names in TABLE["modules"].items():
        module = ModuleType(".".join(["transformer_engine.pytorch", *([path] if path else [])]))
        for name in names:
            setattr(module, name, STAND_INS.get(name) or type(name, (), {}))
        found[module.__name__] = module
    for name in sorted(found):
        found[name].__path__ = []  # type: ignore[attr-defined]
        above, _, own = name.rpartition(".")
        if above in found:
            setattr(found[above], own, found[name])
    sys.modules.update(found)
