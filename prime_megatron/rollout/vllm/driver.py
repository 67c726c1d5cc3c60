"""vLLM in the engine process, or in the trainer's (written against 0.32). Imported only when it is chosen.

Every response has a seed of its own, so it depends on neither the batch nor the replica. Log-probs are those of the
distribution drawn from; greedy ones are at temperature 1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prime_megatron.families.read import read_config
from prime_megatron.rollout.engine import Request, Sampling
from prime_megatron.rollout.process.driver import BroadcastGroup, DriverSettings, FinishedResponse, stream_seed
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.weights.buffer import TensorRow

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_WORKER_MULTIPROC_METHOD="spawn",
    VLLM_NO_USAGE_STATS="1",
    VLLM_DO_NOT_TRACK="1",
)
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from torch import Tensor
from vllm import LLM, SamplingParams

from prime_megatron.rollout.vllm.reading import check_reading
from prime_megatron.rollout.vllm.transfer import BACKEND


class VllmDriver:
    """See `Driver`."""

    def __init__(self, settings: DriverSettings) -> None:
        self._settings = settings
        on_cpu = settings.device == "cpu"
        memory = (
            {"kv_cache_memory_bytes": settings.cpu_cache_bytes}
            if on_cpu
            else {"gpu_memory_utilization": settings.memory_fraction, "enable_sleep_mode": settings.can_sleep}
        )
        arguments: dict[str, Any] = {
            "model": settings.model_path,
            "dtype": settings.dtype,
            "load_format": "dummy",  # the trainer's weights come before the first request
            "enforce_eager": on_cpu,
            "max_model_len": settings.max_tokens,
            "max_num_seqs": settings.max_concurrent,
            "skip_tokenizer_init": True,
            "tensor_parallel_size": settings.tensor,
            "distributed_executor_backend": _executor(settings),
            "worker_extension_cls": "prime_megatron.rollout.vllm.worker.PrimeWorker",
            "weight_transfer_config": {"backend": BACKEND},
            "seed": settings.seed % 2**31,
            "logprobs_mode": "processed_logprobs",
            "trust_remote_code": settings.trust_remote_code,
            "disable_log_stats": True,
            **memory,
            **settings.extra,
        }
        family = read_config(settings.model_path)
        arguments["hf_overrides"] = family.corrections | arguments.get("hf_overrides", {})
        self._llm = LLM(**arguments)
        self._engine = self._llm.llm_engine
        config, path = self._engine.vllm_config.model_config, settings.model_path
        for windows in self._llm.collective_rpc("prime_windows"):
            check_reading(family, config, windows, path, settings.max_tokens)
        if settings.in_process:
            # It would destroy the trainer's groups, too, when the engine is collected; `close` does the rest.
            self._engine.engine_core._finalizer.detach()
        self._calls = 0
        self._updating = False
        # The first step compiles and allocates for seconds; a silence of that length later on means a hang.
        warm = Request((0, 0), SampleKey(0, 0, 0, 0), Sampling(2))
        self.generate([warm], lambda answer: None, lambda: None)

    def generate(
        self, requests: Sequence[Request], finished: Callable[[FinishedResponse], None], alive: Callable[[], None]
    ) -> None:
        """See `Driver.generate`."""
        self._calls += 1
        names = [f"{self._calls}-{index}" for index in range(len(requests))]
        for name, request in zip(names, requests, strict=True):
            prompt = {"prompt_token_ids": list(request.prompt_ids)}
            self._engine.add_request(name, prompt, self._sampling(request))
        try:
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    if output.finished:
                        finished(_answer(output))
                alive()
        except BaseException:
            self._engine.abort_request(names)
            raise

    def attach(self, paths: Sequence[str]) -> None:
        """See `Driver.attach`."""
        self._llm.collective_rpc("prime_attach", args=(list(paths),))

    def load_bucket(self, handles: Sequence[Mapping[str, Any]], rows: Sequence[TensorRow]) -> None:
        """See `Driver.load_bucket`."""
        self._update([{"handle": handle, "rows": list(rows)} for handle in handles])

    def load_tensors(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Take whole Hugging Face tensors of this process (``in_process``), which nothing may write until `commit`."""
        self._update({"named": named})

    def load_folder(self, path: str) -> None:
        """See `Driver.load_folder`."""
        self._update({"files": [str(file) for file in sorted(Path(path).glob("*.safetensors"))]})

    def join(self, group: BroadcastGroup) -> None:
        """See `Driver.join`."""
        info = {"address": group.address, "port": group.port, "name": group.name}
        info["world_size"] = 1 + self._settings.tensor
        self._llm.collective_rpc("init_weight_transfer_engine", args=(info,))

    def receive(self, rows: Sequence[TensorRow]) -> None:
        """See `Driver.receive`."""
        self._update({"rows": list(rows)})

    def commit(self, version: int) -> None:
        """See `Driver.commit`."""
        if self._updating:
            self._llm.collective_rpc("finish_weight_update")
        self._updating = False
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM could not drop its prefix cache: requests are still running")

    def bit_sums(self) -> list[dict[str, int]]:
        """See `Driver.bit_sums`."""
        return self._llm.collective_rpc("prime_bit_sums")

    def parameters(self) -> dict[str, Tensor]:
        """This process's live parameters (``in_process``), detached, by vLLM's names."""
        (params,) = self._llm.collective_rpc("prime_parameters")
        return params

    def sleep(self, level: int) -> None:
        """See `Driver.sleep`. On a CPU vLLM answers and frees nothing."""
        self._llm.sleep(level)

    def wake(self, tags: Collection[str]) -> None:
        """See `Driver.wake`."""
        self._llm.wake_up(tags=sorted(tags, reverse=True))

    def close(self) -> None:
        """See `Driver.close`."""
        if self._settings.in_process:
            self._engine.model_executor.shutdown()
        else:
            self._engine.engine_core.shutdown()

    def _update(self, part: dict[str, Any] | list[dict[str, Any]]) -> None:
        """A part of an update, for all workers or for each its own."""
        if not self._updating:
            self._llm.collective_rpc("start_weight_update")
        self._updating = True
        self._llm.collective_rpc("update_weights", args=(part,))

    def _sampling(self, request: Request) -> SamplingParams:
        how = request.sampling
        return SamplingParams(
            temperature=0.0 if how.greedy else how.temperature,
            top_p=1.0 if how.greedy else how.top_p,
            top_k=-1,
            max_tokens=how.max_tokens,
            logprobs=0,
            seed=stream_seed(request.key),
            detokenize=False,
            stop_token_ids=list(self._settings.end_token_ids),
        )


def _executor(settings: DriverSettings) -> str:
    """Where vLLM's workers run: in ranks that somebody else started, in this process, or in processes below it."""
    if settings.in_process:
        return "external_launcher"
    return "uni" if settings.tensor == 1 else "mp"


def _answer(output: Any) -> FinishedResponse:
    made = output.outputs[0]
    if made.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with {made.finish_reason}")
    token_ids = list(made.token_ids)
    logprobs = [place[token].logprob for token, place in zip(token_ids, made.logprobs, strict=True)]
    return FinishedResponse(int(output.request_id.split("-")[1]), token_ids, logprobs, made.finish_reason)
