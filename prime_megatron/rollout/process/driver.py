"""What an engine must do inside its process; everything that is particular to one engine is behind this.

A driver runs in a child process of the trainer (``rollout.child``), which may die or be killed at any time: it keeps
nothing that cannot be made anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol

from prime_megatron.device import memory_free_share
from prime_megatron.errors import InputError
from prime_megatron.rollout.engine import Request, Sampling
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.weights.buffer import TensorRow

INSTALL = {
    "sglang": "make its environment with python tools/engine_env/make_env.py sglang .venv-sglang, and start from there",
    "vllm": "make its environment with python tools/engine_env/make_env.py vllm .venv-vllm, and start from there",
}
"""How to get an engine, for the error of a missing package."""


@dataclass(frozen=True)
class DriverSettings:
    """How to start an engine."""

    model_path: str
    device: str
    """"cpu" or "cuda"."""
    dtype: str
    """"float32" or "bfloat16"."""
    tensor: int
    """Tensor-parallel size."""
    max_tokens: int
    """Longest sequence, prompt and response."""
    max_concurrent: int
    end_token_ids: tuple[int, ...]
    seed: int
    trust_remote_code: bool
    memory_fraction: float
    """Share of the whole device's memory for weights and KV cache (GPU); an engine that understands another share is
    told that one."""
    cpu_cache_bytes: int
    """KV cache of one replica (CPU)."""
    can_sleep: bool
    """Whether the engine must be able to give its device memory back."""
    free_share: float = 1.0
    """Share of the device's memory that nobody uses when the engine starts (GPU)."""
    expert: int = 1
    """SGLang: expert-parallel size, within the tensor-parallel ranks."""
    server: bool = False
    """SGLang: behind HTTP on loopback."""
    in_process: bool = False
    """vLLM: in the calling process, which is a rank of torch.distributed's world (``rollout.vllm.in_process``)."""
    start_timeout_s: float = 600.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of the engine's own constructor."""

    def now(self) -> DriverSettings:
        """The same for an engine that starts now, beside what is on the device now."""
        return dataclasses.replace(self, free_share=memory_free_share())

    def share_of_free(self) -> float:
        """The same bytes as ``memory_fraction``, as a share of what is free when the engine starts.

        Raises:
            InputError: less is free.
        """
        share = self.memory_fraction / self.free_share
        if share >= 1.0:
            raise InputError(
                f"memory_fraction: {self.memory_fraction:g} of the device's memory, and {self.free_share:.2f} of it is "
                "free when the engine starts; set it lower, or parallel.offload to generation or phases"
            )
        return share

    def as_json(self) -> dict[str, Any]:
        """For the line to the child."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> DriverSettings:
        """Inverse of ``as_json``."""
        return cls(**{**row, "end_token_ids": tuple(row["end_token_ids"])})


@dataclass(frozen=True)
class FinishedResponse:
    """A finished response; ``index`` is its request's place in the call."""

    index: int
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    finish: str
    """"stop" or "length"."""
    version: int | None = None
    """Policy version by the engine's own account, where it keeps one."""


@dataclass(frozen=True)
class BroadcastGroup:
    """A broadcast group of the sender (rank 0) and the engine's tensor-parallel ranks (1 ..)."""

    address: str
    port: int
    name: str


class UpdateRefused(Exception):
    """The engine answered that it did not take a weight update. It lives, with weights that must not be used."""


class Driver(Protocol):
    """One engine. Any exception but UpdateRefused ends the child: the trainer then starts another."""

    def generate(
        self, requests: Sequence[Request], finished: Callable[[FinishedResponse], None], alive: Callable[[], None]
    ) -> None:
        """FinishedResponse all requests; ``finished`` hears of each at once, ``alive`` while the engine gets on."""
        ...

    def attach(self, paths: Sequence[str]) -> None:
        """Move the parameters of tensor-parallel rank r into the segment paths[r] (``rollout.live_weights``)."""
        ...

    def load_bucket(self, handles: Sequence[Mapping[str, Any]], rows: Sequence[TensorRow]) -> None:
        """Take whole Hugging Face tensors, packed in a shared buffer (``shared_buffer``): a handle per tensor-parallel
        rank. When it returns the buffer is free again."""
        ...

    def load_folder(self, path: str) -> None:
        """Take the weights of a Hugging Face folder."""
        ...

    def join(self, group: BroadcastGroup) -> None:
        """Join a broadcast group; returns when the group stands."""
        ...

    def receive(self, rows: Sequence[TensorRow]) -> None:
        """Take whole Hugging Face tensors that the group's rank 0 broadcasts packed."""
        ...

    def commit(self, version: int) -> None:
        """The update is complete, the weights are of this version: drop what older ones left in the caches."""
        ...

    def bit_sums(self) -> list[dict[str, int]]:
        """``live_weights.bit_sums`` of the parameters in use, per tensor-parallel rank."""
        ...

    def sleep(self, level: int) -> None:
        """Free device memory: 1 keeps the weights in host memory, 2 forgets them."""
        ...

    def wake(self, tags: Collection[str]) -> None:
        """Take device memory back for "weights" and/or "kv_cache"."""
        ...

    def close(self) -> None:
        """End the engine's processes."""
        ...


def stream_seed(key: SampleKey) -> int:
    """A response's seed for engines that take one integer, below 2**31."""
    words = (key.seed, key.step, key.draw, key.sample, key.purpose)
    digest = blake2b(b"".join(word.to_bytes(8, "little") for word in words), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def request_to_json(request: Request) -> list[Any]:
    """A request for the line to the child."""
    key, how = request.key, request.sampling
    return [
        list(request.prompt_ids),
        [key.seed, key.step, key.draw, key.sample, key.purpose],
        [how.max_tokens, how.temperature, how.top_p, how.greedy],
    ]


def request_from_json(row: Sequence[Any]) -> Request:
    """Inverse of ``request_to_json``."""
    prompt, key, how = row
    return Request(tuple(prompt), SampleKey(*key), Sampling(*how))
