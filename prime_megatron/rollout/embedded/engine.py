"""The embedded engine: transformers' own model class in this process, driven by our own decode loop (and, for the
common dense families, our own decode step over the same weights: dense.py; mixtures of experts and sequences beyond a
sliding window take transformers' forward).

A response in progress is a row; all rows share one static KV cache. Siblings share one prefill. Finished rows are
squeezed out and waiting requests take their place.

Legend: B rows in progress, L cached positions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prime_megatron.errors import InputError
from prime_megatron.rollout.embedded.cache import ATTENTION, ATTENTION_KINDS, PromptCache, RowCache
from prime_megatron.rollout.embedded.dense import DenseDecoder
from prime_megatron.rollout.embedded.rows import Rows
from prime_megatron.rollout.engine import Completion, Request
from prime_megatron.rollout.sampling import draw
from prime_megatron.types import Bucket

PREFILL_TOKENS = 8192
"""Padded prompt tokens of one prefill forward."""


class EmbeddedEngine:
    """One replica in one process; see `Engine`.

    Only config.json of the model folder is read, but for ``corrections``, keys that the weights contradict: weights
    arrive by resharding, in the rollout layout.
    Raises InputError for a folder without a config that transformers knows, and for layers without attention.
    """

    def __init__(
        self,
        model_path: str,
        *,
        end_token_ids: Collection[int],
        device: torch.device,
        dtype: torch.dtype,
        max_concurrent: int,
        replica: int = 0,
        num_replicas: int = 1,
        trust_remote_code: bool = False,
        corrections: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.replica, self.num_replicas, self.num_restarts = replica, num_replicas, 0
        self._device, self._max_concurrent = device, max_concurrent
        self._end = torch.tensor(sorted(end_token_ids), dtype=torch.long, device=device)
        self._version = -1
        self._asleep = False
        self._model = _empty_model(model_path, device, dtype, trust_remote_code, corrections)
        self._dense = DenseDecoder(self._model) if DenseDecoder.supports(self._model) else None
        self._memory = [_Memory(storage) for storage in _storages(self._model)]

    @property
    def version(self) -> int:
        """See `Engine.version`."""
        return self._version

    @property
    def model(self) -> PreTrainedModel:
        """transformers' model: its config and modules tell what this engine computes."""
        return self._model

    def named_targets(self) -> Mapping[str, Tensor]:
        """Parameters by HF name; tied embeddings appear once, as the input embedding."""
        return dict(self._model.named_parameters())

    def update_weights(self, buckets: Iterable[Bucket], version: int) -> None:
        """See `Engine.update_weights`. Raises InputError for a name that the model does not have."""
        targets = self.named_targets()
        with torch.no_grad():
            for bucket in buckets:
                for name, tensor in zip(bucket.names, bucket.tensors, strict=True):
                    if name not in targets:
                        raise InputError(f"weight {name} is not in the engine's model: check models.policy.path")
                    targets[name].copy_(tensor)
        self._version = version

    def sleep(self, level: int) -> None:
        """See `Engine.sleep`. On a CPU the weights already are in host memory, and level 1 does nothing."""
        assert level in (1, 2), level
        if self._asleep or (level == 1 and self._device.type == "cpu"):
            return
        for memory in self._memory:
            memory.release(keep=level == 1)
        if level == 2:
            self._version = -1
        self._asleep = True

    def wake(self, tags: Collection[str]) -> None:
        """See `Engine.wake`. The KV cache lives only within `generate`."""
        if not self._asleep or "weights" not in tags:
            return
        for memory in self._memory:
            memory.restore()
        self._asleep = False

    def close(self) -> None:
        """See `Engine.close`."""
        self._model = self._dense = None
        self._memory = []

    @torch.inference_mode()
    def generate(
        self, requests: Sequence[Request], on_finished: Callable[[Completion], None] | None = None
    ) -> list[Completion]:
        """See `Engine.generate`."""
        assert self._version >= 0 and not self._asleep, "generate before the first weight sync, or asleep"
        if not requests:
            return []
        positions = self._check(requests)
        width = max(request.sampling.max_tokens for request in requests)
        capacity = min(self._max_concurrent, len(requests))
        cache = RowCache(capacity, positions)
        done: dict[int, Completion] = {}
        admitted = 0
        rows: Rows | None = None
        while rows is not None or admitted < len(requests):
            room = capacity - (0 if rows is None else rows.index.numel())
            if admitted < len(requests) and (rows is None or room >= capacity // 4):
                places = range(admitted, min(admitted + room, len(requests)))
                new = self._admit(requests, places, width, cache, capacity - room)
                rows = new if rows is None else rows.join(new)
                admitted = places.stop
            finished = self._decode(rows, cache)
            for completion, place in rows.completions(finished, requests):
                done[place] = completion
                if on_finished is not None:
                    on_finished(completion)
            stay = (~finished).nonzero().squeeze(1)
            if stay.numel():
                cache.keep(stay, int(rows.position.max()))
            rows = rows.select(stay) if stay.numel() else None
        return [done[place] for place in range(len(requests))]

    def _check(self, requests: Sequence[Request]) -> int:
        """Longest sequence that can come, in tokens; raises InputError when the model cannot hold it."""
        positions = max(len(request.prompt_ids) + request.sampling.max_tokens for request in requests)
        limit = self._model.config.max_position_embeddings
        if positions > limit:
            raise InputError(
                f"prompt and response may reach {positions} tokens, the model holds {limit} (max_position_embeddings): "
                "lower data.max_prompt_tokens or rollout.sampling.max_response_tokens"
            )
        return positions

    def _admit(
        self, requests: Sequence[Request], places: Sequence[int], width: int, cache: RowCache, first_row: int
    ) -> Rows:
        """New rows behind first_row, shortest prompts first, siblings adjacent, each prompt run once.

        The last prompt token is left for the first decode step, which makes the prefill a matter of the cache alone.
        """
        siblings: dict[tuple[int, ...], list[int]] = {}
        for place in places:
            siblings.setdefault(requests[place].prompt_ids[:-1], []).append(place)
        prompts = sorted(siblings, key=len)
        rows = Rows.of(requests, [place for prompt in prompts for place in siblings[prompt]], width, self._device)
        for chunk in _chunks(prompts):
            counts = torch.tensor([len(siblings[prompt]) for prompt in chunk], device=self._device)
            longest = len(chunk[-1])
            if longest:
                # Padding stands to the right of every real token, where causal attention never looks.
                ids = torch.tensor([prompt + (0,) * (longest - len(prompt)) for prompt in chunk], device=self._device)
                caught = PromptCache()
                position_ids = torch.arange(longest, device=self._device).unsqueeze(0)
                self._model.base_model(input_ids=ids, position_ids=position_ids, past_key_values=caught, use_cache=True)
                cache.fill(first_row, caught, torch.repeat_interleave(counts))
            first_row += int(counts.sum())
        return rows

    def _decode(self, rows: Rows, cache: RowCache) -> Tensor:
        """Decode until an eighth of the rows (or one) has finished; bool [B], the finished ones.

        A finished row stands still until the others stop: it writes over its own last position and a spare column.
        """
        live = torch.ones_like(rows.greedy)
        visible = int(rows.position.max()) + 1
        position_L = torch.arange(cache.shape[1], device=self._device)
        row_B = torch.arange(live.numel(), device=self._device)
        top_p = rows.top_p if bool((rows.top_p < 1).any()) else None
        greedy = rows.greedy if bool(rows.greedy.any()) else None
        dense = self._dense if self._dense is not None and cache.shape[1] <= self._dense.positions else None
        rotary = None if dense is None else dense.rotary(cache.shape[1])
        while int(live.sum()) > live.numel() - max(1, live.numel() // 8):
            cache.at(rows.position, visible)
            mask = position_L[:visible] <= rows.position.unsqueeze(1)
            if dense is not None:
                logits = dense.step(rows.token, rows.position, rotary, mask, cache)
            else:
                logits = self._model(
                    input_ids=rows.token.unsqueeze(1), attention_mask=mask[:, None, None], use_cache=True,
                    position_ids=rows.position.unsqueeze(1), past_key_values=cache, logits_to_keep=1,
                ).logits[:, -1]  # fmt: skip
            uniform = rows.uniform.gather(1, rows.count.unsqueeze(1)).squeeze(1)
            rows.token, logprob = draw(logits, rows.temperature, top_p, greedy, uniform)
            rows.tokens[row_B, rows.count] = rows.token
            rows.logprobs[row_B, rows.count] = logprob
            rows.count += live
            rows.position += live
            rows.ended |= live & (torch.isin(rows.token, self._end) | ~logprob.isfinite())
            live &= ~rows.ended & (rows.count < rows.limit)
            visible += 1
        return ~live


class _Memory:
    """A storage of weights, which several parameters may share, that can be given back for a while."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage
        self.num_bytes = storage.nbytes()
        self.host: torch.UntypedStorage | None = None

    def release(self, *, keep: bool) -> None:
        """Free the memory; keep: after a copy to the host."""
        self.host = self.storage.cpu() if keep else None
        self.storage.resize_(0)

    def restore(self) -> None:
        """Take the memory back, with what was kept."""
        self.storage.resize_(self.num_bytes)
        if self.host is not None:
            self.storage.copy_(self.host)
        self.host = None


def _storages(model: PreTrainedModel) -> list[torch.UntypedStorage]:
    storages = [parameter.untyped_storage() for parameter in model.parameters()]
    return list({storage.data_ptr(): storage for storage in storages}.values())


def _empty_model(
    path: str, device: torch.device, dtype: torch.dtype, trust_remote_code: bool, corrections: Mapping[str, Any]
) -> PreTrainedModel:
    """The model class of config.json with unloaded weights, on the device."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **corrections)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: no model config that transformers can read ({str(error).splitlines()[0]})"
        ) from error
    unknown = set(getattr(config, "layer_types", None) or ()) - ATTENTION_KINDS
    if unknown:
        raise InputError(f"{path}: the embedded engine has no {min(unknown)}; use sglang or vllm")
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=trust_remote_code
        )
    return model.eval().requires_grad_(False)


def _chunks(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Prompts in ascending length cut so that none but a lone prompt pads to more than PREFILL_TOKENS."""
    chunks: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if chunks and len(prompt) * (len(chunks[-1]) + 1) <= PREFILL_TOKENS:
            chunks[-1].append(prompt)
        else:
            chunks.append([prompt])
    return chunks
