"""SGLang's in-process engine behind the driver."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from sglang.srt.entrypoints.engine import Engine
from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput, UpdateWeightsFromTensorReqInput


class EngineBackend:
    """A `driver.SglangBackend`: SGLang's Engine in this process, a scheduler process per tensor-parallel rank."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._engine = Engine(**arguments)

    def run(self, task: Awaitable[None]) -> None:
        """See `SglangBackend.run`."""
        self._engine.loop.run_until_complete(task)

    async def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `SglangBackend.generate`."""
        answer: dict[str, Any] = await self._engine.async_generate(**body)
        return answer

    async def ping(self) -> None:
        """See `SglangBackend.ping`."""
        await self._engine.tokenizer_manager.get_internal_state()

    def update(self, operation: str, **arguments: Any) -> tuple[bool, str]:
        """See `SglangBackend.update`."""
        engine = self._engine
        match operation:
            case "update_weights_from_tensor":
                payloads = arguments.pop("payloads")
                request = UpdateWeightsFromTensorReqInput(
                    serialized_named_tensors=payloads, **({"flush_cache": False} | arguments)
                )
                result = engine.loop.run_until_complete(
                    engine.tokenizer_manager.update_weights_from_tensor(request, None)
                )
            case "update_weights_from_disk":
                disk = UpdateWeightFromDiskReqInput(load_format="auto", **arguments)
                result = engine.loop.run_until_complete(engine.tokenizer_manager.update_weights_from_disk(disk, None))
            case other:
                result = getattr(engine, other)()
        return bool(result[0]), str(result[1])

    def settle(self, timeout_s: float) -> None:
        """See `SglangBackend.settle`."""
        engine = self._engine
        result = engine.loop.run_until_complete(engine.tokenizer_manager.flush_cache(timeout_s=timeout_s))
        if not result.success:
            raise RuntimeError(f"SGLang does not come to rest: {result.message}")

    def occupy(self, operation: str, tags: Sequence[str]) -> None:
        """See `SglangBackend.occupy`."""
        getattr(self._engine, operation)(tags=list(tags))

    def close(self) -> None:
        """See `SglangBackend.close`."""
        self._engine.shutdown()
