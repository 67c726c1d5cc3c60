"""A tiny model, an engine on it, and what the engine must answer by transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from prime_megatron.families.engine_layout import fused_pieces
from prime_megatron.families.read import read_config
from prime_megatron.parallel.shards import ShardSlice, as_slices
from prime_megatron.rollout.engine import Completion, Request, Sampling
from prime_megatron.rollout.process.driver import DriverSettings
from prime_megatron.rollout.process.engine import ProcessEngine
from prime_megatron.rollout.process.limits import Limits
from prime_megatron.rollout.process.process import EngineProcess
from prime_megatron.rollout.process.replica import Member
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.types import Bucket
from prime_megatron.weights.folder import WeightFolder
from prime_megatron.weights.segment import open_segment
from prime_megatron.weights.slices import part
from prime_megatron.weights.transports import (
    BroadcastTransport,
    BucketTransport,
    DiskTransport,
    LiveTransport,
    Transport,
)

VOCAB = 130  # not a multiple of what the engines pad to
END = 1
WORKER = re.compile("sglang::scheduler|VLLM::Worker", re.IGNORECASE)
MAX_TOKENS = 256


def make_model(folder: Path, seed: int) -> str:
    """A two-layer Qwen2 with random weights far from uniform; returns the folder."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.2,
        eos_token_id=END, bos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).float()
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(param, std=0.1)
    model.save_pretrained(folder)
    return str(folder)


def make_biased_model(folder: Path, seed: int, *, mlp_bias: bool, own_head: bool) -> str:
    """A two-layer Llama with biases in attention and, where asked for, in the feed-forward, and yarn; the folder.

    own_head: config.json says that the output layer is tied, though the weights have another.
    """
    torch.manual_seed(seed)
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.2,
        eos_token_id=END, bos_token_id=0, pad_token_id=None, attention_bias=True, mlp_bias=mlp_bias,
        rope_parameters=yarn,
    )  # fmt: skip
    model = LlamaForCausalLM(config).float()
    for name, param in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(param, std=0.1)
    model.save_pretrained(folder)
    if own_head:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": True}))
    return str(folder)


def make_windowed_model(folder: Path, window: int) -> str:
    """A two-layer Mistral with a window in both layers; the folder."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.2,
        eos_token_id=END, bos_token_id=0, pad_token_id=None, sliding_window=window,
    )  # fmt: skip
    MistralForCausalLM(config).float().save_pretrained(folder)
    return str(folder)


def make_engine(
    engine: str, model: str, folder: Path, *, tensor: int = 1, expert: int = 1, transport: str = "live",
    server: bool = False, max_restarts: int = 2, alive_timeout_s: float = 60.0, extra: Mapping[str, object] = {},
) -> ProcessEngine:  # fmt: skip
    """The engine on one rank that leads a replica of ``tensor`` engine ranks."""
    settings = DriverSettings(
        model_path=model, device="cpu", dtype="float32", tensor=tensor, max_tokens=MAX_TOKENS, max_concurrent=64,
        end_token_ids=(END,), seed=7, trust_remote_code=False, memory_fraction=0.5, cpu_cache_bytes=64 << 20,
        can_sleep=True, expert=expert, server=server, start_timeout_s=500.0, extra=extra,
    )  # fmt: skip
    env = {"OMP_NUM_THREADS": "1", "SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(rank) for rank in range(tensor))}
    return ProcessEngine(
        Member(0, 1, 0, 0, None),
        settings,
        Limits(max_restarts, 900.0, alive_timeout_s, 120.0),
        lambda: EngineProcess(engine, settings, env, folder / "engine.log"),
        make_transport(transport, model, folder, tensor),
    )


def make_transport(transport: str, model: str, folder: Path, tensor: int) -> Transport:
    """The leader's side of a transport."""
    if transport == "live":
        return LiveTransport(tensor, 120.0)
    how = (layout(model, tensor), torch.float32, 1, 120.0)
    if transport == "disk":
        return DiskTransport(*how, WeightFolder(folder / "spool", model))
    return BroadcastTransport(*how) if transport == "broadcast" else BucketTransport(*how)


def switch(engine: ProcessEngine, transport: str, model: str, folder: Path, tensor: int) -> None:
    """Let a running engine take its weights by another transport from now on."""
    assert engine._process is not None
    engine._transport = make_transport(transport, model, folder, tensor)
    engine._targets = None
    engine._transport.restore(engine._process, -1)


def layout(model: str, tensor: int) -> list[list[ShardSlice]]:
    """What each engine rank holds."""
    return [fused_pieces(read_config(model), tensor, rank) for rank in range(tensor)]


def publish(engine: ProcessEngine, model: str, version: int, *, tensor: int = 1, num_buckets: int = 3) -> None:
    """Give the engine a folder's weights, by whatever way it has."""
    weights = load_file(Path(model) / "model.safetensors")
    if engine.named_targets() is None:
        engine.update_weights(buckets(weights, num_buckets, version), version)
        return
    for rank, pieces in enumerate(layout(model, tensor)):
        write(segment(engine, rank), pieces, weights)
    engine.update_weights((), version)


def segment(engine: ProcessEngine, rank: int) -> Mapping[str, Tensor]:
    """The live weights of an engine rank; the other ranks' are reached as their trainer ranks would."""
    return open_segment(engine._link.paths[rank])


def write(targets: Mapping[str, Tensor], pieces: Sequence[ShardSlice], weights: Mapping[str, Tensor]) -> None:
    for piece in pieces:
        part(targets[piece.param], piece.local).copy_(weights[piece.hf_name][as_slices(piece.hf)])


def buckets(weights: Mapping[str, Tensor], count: int, version: int) -> Iterator[Bucket]:
    """The weights in ``count`` buckets; q, k and v of a layer part ways."""
    names = sorted(weights)
    for start in range(count):
        chosen = names[start::count]
        tensors = [weights[name] for name in chosen]
        yield Bucket(chosen, tensors, version)


def requests(
    count: int, *, max_tokens: int = 12, temperature: float = 1.0, greedy: bool = False, step: int = 0
) -> list[Request]:
    """Requests of different prompts."""
    return [
        Request(
            tuple(5 + (7 * place + word) % 100 for word in range(3 + place % 4)),
            SampleKey(11, step, place, 0),
            Sampling(max_tokens, temperature, greedy=greedy),
        )
        for place in range(count)
    ]


@torch.no_grad()
def largest_gap(model: str, completions: Sequence[Completion]) -> float:
    """Largest |engine - transformers| over all response tokens, nats."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    worst = 0.0
    for completion in completions:
        prompt, made = completion.request.prompt_ids, completion.token_ids
        logits = reference(torch.tensor([prompt + made])).logits[0, len(prompt) - 1 : -1].float()
        logprobs = (logits / completion.request.sampling.temperature).log_softmax(-1)
        expected = logprobs[torch.arange(len(made)), torch.tensor(made)]
        worst = max(worst, float((expected - torch.tensor(completion.logprobs)).abs().max()))
    return worst


def workers(pid: int) -> list[int]:
    """Living processes of a process group that compute, by their titles; the leader where there is none."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            title = (entry / "cmdline").read_text()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[2]) == pid and WORKER.search(title):
            found.append(int(entry.name))
    return sorted(found) or [pid]
