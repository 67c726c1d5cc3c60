"""A mixture of experts in a real engine: what test_sglang_moe.py and test_vllm_moe.py ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from prime_megatron.families.engine_layout import SGLANG_EXPERTS, VLLM_EXPERTS, fused_pieces
from prime_megatron.families.read import read_config
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.weights.segment import open_segment
from prime_megatron.weights.transports import BucketTransport
from tests.engines.cases import PARITY
from tests.engines.tiny import END, VOCAB, buckets, largest_gap, make_engine, requests, write
from tests.support import toy
from tests.support.engine_oracle import engine_tensors
from tests.support.runs import run

APART = 1.0
"""Nats by which the other model's log-probs differ at least somewhere."""
_SIZES = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "num_experts_per_tok": 2,
    "tie_word_embeddings": False, "initializer_range": 0.2, "eos_token_id": END, "bos_token_id": 0,
    "pad_token_id": None,
}  # fmt: skip


def two_models(folder: Path, family: str) -> tuple[str, str]:
    """Four experts, the same shape, other random weights; family: qwen3_moe or mixtral."""
    return _make_model(folder / "a", family, 0), _make_model(folder / "b", family, 1)


def _make_model(folder: Path, family: str, seed: int, **changes: Any) -> str:
    torch.manual_seed(seed)
    sizes = {**_SIZES, **changes}
    if family == "mixtral":
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4, sliding_window=None))
    else:
        model = Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**sizes, num_experts=4, moe_intermediate_size=64, norm_topk_prob=True)
        )
    model.float().save_pretrained(folder)
    return str(folder)


def check_training(name: str, folder: Path, **rollout: object) -> None:
    """Three steps on two ranks that hold half of the experts each, with one engine over both: after every sync the
    engine's log-probs are the trainer's."""
    model = _make_model(folder / "model", "qwen3_moe", 0, vocab_size=65, max_position_embeddings=128)
    toy.make_tokenizer().save_pretrained(model)
    settings = toy.settings(
        model,
        toy.make_prompts(folder / "prompts.jsonl"),
        folder / "run",
        parallel={"expert": 2, "timeout_s": 600.0},
        rollout={"engine": name, "start_timeout_s": 400.0, "tensor": 2, "transport": "live", **rollout},
    )
    rows = run(settings, 2, 600.0)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["engine/tokens"] > 0
        assert row["engine/logprob_gap_max"] < PARITY


class Mixture:
    """An engine, the two models that it gets, and the memory that its parameters lie in, by engine rank."""

    def __init__(self, name: str, engine: ProcessEngine, models: tuple[str, str], expert: int) -> None:
        self._engine, self._models, self._expert = engine, models, expert
        self._config = read_config(models[0])
        self._module = VLLM_EXPERTS if name == "vllm" else SGLANG_EXPERTS
        self._live = engine._link
        self._memory = [open_segment(path) for path in self._live.paths]
        self._layout = [
            fused_pieces(
                self._config, len(self._memory), rank, experts_module=self._module, expert_size=expert
            )
            for rank in range(len(self._memory))
        ]  # fmt: skip

    def check_live(self) -> None:
        """Weights written in place are the checkpoint's bit for bit, and answer."""
        self._engine._transport, self._engine._targets = self._live, self._memory[0]
        for version, model in enumerate(self._models):
            weights = load_file(Path(model) / "model.safetensors")
            for memory, pieces in zip(self._memory, self._layout, strict=True):
                write(memory, pieces, weights)
            self._engine.update_weights((), version)
            self._check(model, version)

    def check_buckets(self) -> None:
        """Weights that the engine's own loader takes from buckets (checksums compared by the transport) lie where the
        layout says, and answer."""
        self._engine._transport, self._engine._targets = BucketTransport(self._layout, torch.float32, 1, 120.0), None
        for version, model in enumerate(self._models, start=2):
            weights = load_file(Path(model) / "model.safetensors")
            self._engine.update_weights(buckets(weights, 3, version), version)
            self._check(model, version)

    def _check(self, model: str, version: int) -> None:
        assert self._engine.version == version
        made = self._engine.generate(requests(8))
        assert largest_gap(model, made) < PARITY
        (other,) = set(self._models) - {model}
        assert largest_gap(other, made) > APART
        assert largest_gap(model, self._engine.generate(requests(1))) < PARITY
        arrays = load_arrays(Path(model) / "model.safetensors")
        for rank, memory in enumerate(self._memory):
            expected = engine_tensors(self._config, arrays, len(self._memory), rank, self._expert)
            expected = {name.replace(".experts.", f".{self._module}."): array for name, array in expected.items()}
            assert memory.keys() == expected.keys()
            for name, array in expected.items():
                np.testing.assert_array_equal(memory[name].numpy(), array, err_msg=f"engine rank {rank}: {name}")


@contextmanager
def mixture(name: str, folder: Path, *, family: str, tensor: int = 1, expert: int = 1) -> Iterator[Mixture]:
    """A running engine on a mixture of ``family``."""
    models = two_models(folder, family)
    engine = make_engine(name, models[0], folder, tensor=tensor, expert=expert, alive_timeout_s=120.0)
    try:
        yield Mixture(name, engine, models, expert)
    finally:
        engine.close()
