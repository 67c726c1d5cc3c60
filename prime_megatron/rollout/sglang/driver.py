"""SGLang in the engine process (written against 0.5.23). Imported only when it is chosen, and only there.

Responses are seeded by the engine as a whole: on a CPU SGLang ignores a seed per request, so they depend on the batch
they are made in. Log-probs are those of the distribution drawn from; greedy ones are at temperature 1. SGLang accepts
tensors that its model does not know without a word, so names are checked before, and checksums after an update.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig

from prime_megatron.families.read import read_config
from prime_megatron.rollout.engine import Request, Sampling
from prime_megatron.rollout.process.driver import BroadcastGroup, DriverSettings, FinishedResponse, UpdateRefused
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.rollout.sglang.payload import command_payload
from prime_megatron.rollout.sglang.reading import check_reading, model_config
from prime_megatron.rollout.sglang.worker import LOADER
from prime_megatron.weights.buffer import TensorRow

PING_EVERY_S = 1.0
SETTLE_TIMEOUT_S = 60.0
SPARE_TOKENS = 256
"""Of the KV cache beyond one sequence, where the configured size is below that."""


class SglangBackend(Protocol):
    """SGLang in this process, or behind HTTP. Every answer of an update carries a success flag."""

    def run(self, task: Awaitable[None]) -> None:
        """Run a coroutine to its end."""
        ...

    async def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """One response, as SGLang's /generate gives it."""
        ...

    async def ping(self) -> None:
        """Returns when the schedulers answer."""
        ...

    def update(self, operation: str, **arguments: Any) -> tuple[bool, str]:
        """begin_weight_update, end_weight_update, update_weights_from_tensor or _from_disk."""
        ...

    def settle(self, timeout_s: float) -> None:
        """Return when no request is left, with empty caches. Raises RuntimeError after ``timeout_s``."""
        ...

    def occupy(self, operation: str, tags: Sequence[str]) -> None:
        """release_memory_occupation or resume_memory_occupation."""
        ...

    def close(self) -> None:
        """End the engine."""
        ...


class SglangDriver:
    """See `Driver`."""

    def __init__(self, settings: DriverSettings) -> None:
        self._settings = settings
        self._updating = False
        self._backend: SglangBackend
        arguments = server_arguments(settings)
        if settings.server:
            from prime_megatron.rollout.sglang.server import ServerBackend

            self._backend = ServerBackend(arguments, settings.start_timeout_s)
        else:
            from prime_megatron.rollout.sglang.engine import EngineBackend

            self._backend = EngineBackend(arguments)
        self._check_reading(arguments)
        if settings.device == "cpu" and settings.expert > 1:
            self._command([{"op": "skip_foreign_experts"}] * settings.tensor)
            self._end()
        # The first step takes long on a busy machine; a silence of that length later on means a hang.
        warm = Request((0, 0), SampleKey(0, 0, 0, 0), Sampling(2))
        self._backend.run(self._warm(warm))

    def generate(
        self, requests: Sequence[Request], finished: Callable[[FinishedResponse], None], alive: Callable[[], None]
    ) -> None:
        """See `Driver.generate`."""

        async def one(index: int, request: Request) -> None:
            answer = await self._backend.generate(self._body(request))
            finished(_answer(index, answer))

        async def watch() -> None:
            while True:
                await self._backend.ping()
                alive()
                await asyncio.sleep(PING_EVERY_S)

        async def everything() -> None:
            watcher = asyncio.ensure_future(watch())
            try:
                await asyncio.gather(*(one(index, request) for index, request in enumerate(requests)))
            finally:
                watcher.cancel()

        self._backend.run(everything())

    def attach(self, paths: Sequence[str]) -> None:
        """See `Driver.attach`."""
        self._command([{"op": "attach", "path": path} for path in paths])
        self._end()

    def load_bucket(self, handles: Sequence[Mapping[str, Any]], rows: Sequence[TensorRow]) -> None:
        """See `Driver.load_bucket`."""
        self._command([{"op": "load_bucket", "handle": handle, "rows": rows} for handle in handles])

    def load_folder(self, path: str) -> None:
        """See `Driver.load_folder`."""
        self._tell("update_weights_from_disk", model_path=path)

    def join(self, group: BroadcastGroup) -> None:
        """See `Driver.join`."""
        where = {"address": group.address, "port": group.port, "name": group.name}
        size = self._settings.tensor
        self._command([{"op": "join", **where, "rank": 1 + rank, "world_size": 1 + size} for rank in range(size)])
        self._end()

    def receive(self, rows: Sequence[TensorRow]) -> None:
        """See `Driver.receive`."""
        self._command([{"op": "receive", "rows": rows}] * self._settings.tensor)

    def commit(self, version: int) -> None:
        """See `Driver.commit`. SGLang drops its cache and stamps every later response with the version."""
        self._command([{"op": "noop"}] * self._settings.tensor, flush_cache=True, weight_version=str(version))
        self._end()

    def bit_sums(self) -> list[dict[str, int]]:
        """See `Driver.bit_sums`."""
        return self._ask("bit_sums")

    def sleep(self, level: int) -> None:
        """See `Driver.sleep`. SGLang forgets the weights at either level; on a CPU it frees nothing."""
        # The last response is told before the scheduler is done with its request, and a release amid one kills it.
        self._backend.settle(SETTLE_TIMEOUT_S)
        self._backend.occupy("release_memory_occupation", ["kv_cache", "weights"])

    def wake(self, tags: Collection[str]) -> None:
        """See `Driver.wake`."""
        self._backend.occupy("resume_memory_occupation", sorted(tags, reverse=True))

    def close(self) -> None:
        """See `Driver.close`."""
        self._backend.close()

    def _check_reading(self, arguments: Mapping[str, Any]) -> None:
        family, path = read_config(self._settings.model_path), self._settings.model_path
        for windows in self._ask("windows"):
            check_reading(family, model_config(arguments), windows, path, self._settings.max_tokens)

    async def _warm(self, request: Request) -> None:
        await self._backend.generate(self._body(request))

    def _body(self, request: Request) -> dict[str, Any]:
        how = request.sampling
        return {
            "input_ids": list(request.prompt_ids),
            "sampling_params": {
                "temperature": 0.0 if how.greedy else how.temperature,
                "top_p": 1.0 if how.greedy else how.top_p,
                "top_k": -1,
                "max_new_tokens": how.max_tokens,
                "stop_token_ids": list(self._settings.end_token_ids),
            },
            "return_logprob": True,
        }

    def _begin(self) -> None:
        if not self._updating:
            self._tell("begin_weight_update")
            self._updating = True

    def _end(self) -> None:
        self._tell("end_weight_update")
        self._updating = False

    def _command(self, commands: Sequence[Mapping[str, Any]], **arguments: Any) -> None:
        """One command for every tensor-parallel rank, within an update."""
        self._begin()
        payloads = [command_payload(command) for command in commands]
        self._tell("update_weights_from_tensor", load_format=LOADER, payloads=payloads, **arguments)

    def _ask(self, operation: str) -> list[Any]:
        """Every tensor-parallel rank's answer."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / str(rank) for rank in range(self._settings.tensor)]
            self._command([{"op": operation, "path": str(path)} for path in paths])
            self._end()
            return [json.loads(path.read_text()) for path in paths]

    def _tell(self, operation: str, **arguments: Any) -> None:
        success, message = self._backend.update(operation, **arguments)
        if not success:
            raise UpdateRefused(f"SGLang refused {operation}: {message}")


def server_arguments(settings: DriverSettings) -> dict[str, Any]:
    """SGLang's arguments for these settings; a CPU without AMX needs its plain implementations named."""
    common: dict[str, Any] = {
        "model_path": settings.model_path,
        "device": settings.device,
        "dtype": settings.dtype,
        "load_format": "dummy",  # the trainer's weights come before the first request
        "tp_size": settings.tensor,
        "ep_size": settings.expert,
        "max_running_requests": settings.max_concurrent,
        "skip_tokenizer_init": True,
        "random_seed": settings.seed % 2**31,
        "trust_remote_code": settings.trust_remote_code,
        "custom_weight_loader": [LOADER],
        "sleep_on_idle": True,
        "log_level": "error",
    }
    if settings.device == "cpu":
        common |= {
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "grammar_backend": "none",
            "disable_overlap_schedule": True,
            "disable_cuda_graph": True,
            "mem_fraction_static": 0.1,
            "max_total_tokens": _cpu_cache_tokens(settings),
        }
    else:
        common |= {"mem_fraction_static": settings.share_of_free(), "enable_memory_saver": settings.can_sleep}
    made = common | dict(settings.extra)
    overrides = read_config(settings.model_path).corrections | json.loads(made.get("json_model_override_args", "{}"))
    return made | {"json_model_override_args": json.dumps(overrides)}


def _cpu_cache_tokens(settings: DriverSettings) -> int:
    config = AutoConfig.from_pretrained(settings.model_path, trust_remote_code=settings.trust_remote_code)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = max(1, config.num_key_value_heads // settings.tensor)
    itemsize = getattr(torch, settings.dtype).itemsize
    token_bytes = 2 * config.num_hidden_layers * kv_heads * head_dim * itemsize
    return max(settings.cpu_cache_bytes // settings.tensor // token_bytes, settings.max_tokens + SPARE_TOKENS)


def _answer(index: int, made: Mapping[str, Any]) -> FinishedResponse:
    meta = made["meta_info"]
    finish = meta["finish_reason"]["type"]
    if finish not in ("stop", "length"):
        raise RuntimeError(f"SGLang ended a request with {meta['finish_reason']}")
    pairs = meta["output_token_logprobs"]
    versions = {int(span["version"]) for span in meta["weight_versions"]}
    # Several versions within one response: none of them is right, the trainer refuses it.
    version = versions.pop() if len(versions) == 1 else -1
    return FinishedResponse(index, [pair[1] for pair in pairs], [pair[0] for pair in pairs], finish, version)
