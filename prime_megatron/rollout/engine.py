"""What the trainer asks of a generation engine.

Who calls what, when:
1. The trainer builds one engine per replica, on every rank that takes part in it (`num_replicas` of them; this
   rank serves `replica`). An engine starts without usable weights: `version` is -1.
2. After every policy update, and once before the first generation, `reshard` moves the policy's weights:
   - `named_targets()` is a mapping: the planner copies slices straight into those live tensors, then calls
     `update_weights((), version)`, which drops whatever the old weights left behind (prefix caches);
   - it is None (the engine lives elsewhere or packs its weights): `update_weights(buckets, version)` with all of
     them, in the planner's order.
   The targets stay the same tensors for the engine's life; sleeping only takes their memory away.
3. `rollout.collect` and the evaluation call `generate` with this replica's share of the requests.
4. Around training the trainer calls `sleep(level)`, and `wake` in two parts: `wake({"weights"})`, the sync,
   `wake({"kv_cache"})`.
5. `close()` ends the engine, and may be called twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from prime_megatron.errors import InputError
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.types import Bucket


@dataclass(frozen=True)
class Sampling:
    """How one response is drawn."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False
    """Take the most likely token; log-probs stay those at `temperature`."""


@dataclass(frozen=True)
class Request:
    """One response to make."""

    prompt_ids: tuple[int, ...]
    key: SampleKey
    """Names the random stream, so that a response depends on neither the batch nor the rank it was made in."""
    sampling: Sampling


@dataclass(frozen=True)
class Completion:
    """One response made."""

    request: Request
    token_ids: tuple[int, ...]
    """Response tokens, with the end-of-sequence token that stopped it."""
    logprobs: tuple[float, ...]
    """Log-prob (nats) of each token under the distribution it was drawn from: softmax(logits / temperature), cut to
    the nucleus and renormalised when top_p < 1; under `greedy`, softmax(logits / temperature)."""
    finish: str
    """"stop" (end of sequence) or "length" (cut at max_tokens)."""


class WeightsLost(Exception):
    """A restarted engine waits for its weights: publish them again (collective), then repeat the call, which goes on
    where it was. Raised on all ranks of the replica."""


@runtime_checkable
class Engine(Protocol):
    """One replica of a generation engine, seen from one of its ranks."""

    replica: int
    num_replicas: int
    num_restarts: int
    """Deaths of the replica's process that were made good, on the rank that owns it; 0 elsewhere and without one."""

    @property
    def version(self) -> int:
        """Policy version (number of updates) of the loaded weights; -1 before the first sync."""
        ...

    def generate(
        self, requests: Sequence[Request], on_finished: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """Answer this replica's requests, in their order.

        `on_finished` hears of every completion as soon as it is there, in any order, from the calling thread.
        All ranks of a replica call with the same requests and get the same answer.
        Raises InputError for a request that the model cannot hold, RunError when the engine died too often,
        WeightsLost.
        """
        ...

    def named_targets(self) -> Mapping[str, Tensor] | None:
        """The engine's live weights by HF name, to be written in place; None where they cannot be reached."""
        ...

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None:
        """Take weights of one policy version; with no buckets, those already written into `named_targets`.

        Where `version` is another one afterwards the engine died meanwhile, and wants all of them once more.
        """
        ...

    def sleep(self, level: int) -> None:
        """Free device memory: 1 keeps the weights in host memory, 2 forgets them (a sync must follow)."""
        ...

    def wake(self, tags: Collection[str]) -> None:
        """Take device memory back for "weights" and/or "kv_cache"."""
        ...

    def close(self) -> None:
        """End the engine and free what it holds."""
        ...


def check_lengths(requests: Sequence[Request], max_tokens: int) -> None:
    """Raises InputError for a request that an engine of ``max_tokens`` cannot hold."""
    for request in requests:
        tokens = len(request.prompt_ids) + request.sampling.max_tokens
        if tokens > max_tokens:
            raise InputError(
                f"prompt and response may reach {tokens} tokens, the engine holds {max_tokens}: "
                "lower data.max_prompt_tokens or rollout.sampling.max_response_tokens"
            )
