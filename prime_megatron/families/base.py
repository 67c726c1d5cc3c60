"""What describes a model family: how its config reads, and which of its tensors is which Megatron parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from prime_megatron.families.keys import Keys


@dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary embeddings: "linear" (factor alone), "llama3" (up to original_max_positions) or
    "yarn" (factor and what follows low and high)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    beta_fast: float = 32.0
    """Turns over the original length from which a frequency is kept."""
    beta_slow: float = 1.0
    """Turns below which it is divided by the factor; a linear blend between."""
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by it."""
    truncate: bool = True
    """The blend begins and ends at whole dimensions."""


@dataclass(frozen=True)
class FamilyConfig:
    """A model's shape, read from config.json, in one vocabulary for every family."""

    family: str
    architecture: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied: bool
    """The output layer shares the embedding's weight."""
    qkv_bias: bool
    qk_norm: bool
    window: int | None
    """Sliding attention window in tokens; none: full attention."""
    experts: int
    """Experts of every layer; 0: a dense model."""
    experts_per_token: int
    expert_ffn: int
    normalize_expert_weights: bool
    """The chosen experts' weights sum to 1."""
    output_bias: bool = False
    """Attention's output projection has a bias."""
    mlp_bias: bool = False
    """The feed-forward's three projections have biases."""
    full_layers: tuple[int, ...] = ()
    """Layers that the window leaves out (full attention)."""
    own_head: bool = field(default=False, compare=False)
    """config.json says tied, and the weights say otherwise: the output layer there differs from the embedding."""

    @property
    def corrections(self) -> dict[str, Any]:
        """Keys of config.json that the weights contradict, as they should be: for engines, which go by that file alone,
        and for the config.json of what is written."""
        return {"tie_word_embeddings": False} if self.own_head else {}

    def layer_window(self, layer: int) -> int | None:
        """The window of a layer."""
        return None if layer in self.full_layers else self.window

    def size(self, name: str) -> int:
        """A named dimension of a tensor."""
        return {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "vocab": self.vocab,
            "q": self.heads * self.head_dim,
            "kv": self.kv_heads * self.head_dim,
            "head_dim": self.head_dim,
            "experts": self.experts,
            "expert_ffn": self.expert_ffn,
            "one": 1,
        }[name]


class Split(Enum):
    """How the Megatron parameter is made of Hugging Face tensors, and split over tensor-parallel ranks."""

    REPLICATED = "the same on every rank"
    VOCAB = "rows split, padded to a multiple of the ranks"
    COLUMN = "rows split"
    ROW = "columns split"
    QKV = "q, k, v interleaved per key-value group, rows split"
    GATE_UP = "gate and up, each rows split, stacked on every rank"


@dataclass(frozen=True)
class HfTensor:
    """Name (with {layer} and {expert}) and named dimensions of a Hugging Face tensor."""

    name: str
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter (name with {layer} and {expert}, local to its chunk and rank) and its sources."""

    param: str
    layout: Split
    sources: tuple[HfTensor, ...]


@dataclass(frozen=True)
class Family:
    """One architecture: parse(the keys of config.json) and rules(config)."""

    name: str
    """transformers' model_type."""
    architecture: str
    defaults: Mapping[str, Any]
    """What transformers assumes where config.json leaves a key out."""
    nullable: frozenset[str]
    """Keys that transformers takes a null of."""
    parse: Callable[[Keys], FamilyConfig]
    rules: Callable[[FamilyConfig], tuple[Rule, ...]]
