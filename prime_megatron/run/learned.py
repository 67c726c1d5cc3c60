"""How many different prompts and responses the policy has learned from so far."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from prime_megatron.types import Group


class Learned:
    """Counts by content: the same prompt in another epoch, and the same response to it, is the same.

    A token sequence is known by 64 bits of its hash: of a million, two are taken for one with probability 3e-8.
    """

    def __init__(self) -> None:
        self._prompts: set[int] = set()
        self._responses: set[int] = set()

    def add(self, groups: Sequence[Group]) -> None:
        """The groups of a step that the policy has learned from."""
        for group in groups:
            prompt = group.prompt.token_ids
            self._prompts.add(_hash(prompt))
            self._responses.update(_hash((*prompt, -1, *sample.token_ids)) for sample in group.samples)

    def figures(self) -> dict[str, float]:
        """Different prompts and responses so far."""
        return {
            "data/learned_prompts": float(len(self._prompts)),
            "data/learned_responses": float(len(self._responses)),
        }

    def state(self) -> dict[str, Any]:
        """Both sets as text."""
        return {"prompts": _packed(self._prompts), "responses": _packed(self._responses)}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._prompts, self._responses = _unpacked(state["prompts"]), _unpacked(state["responses"])


def _hash(tokens: Iterable[int]) -> int:
    data = np.fromiter(tokens, dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def _packed(values: set[int]) -> str:
    return base64.b64encode(np.array(sorted(values), dtype="<i8").tobytes()).decode("ascii")


def _unpacked(text: str) -> set[int]:
    return set(np.frombuffer(base64.b64decode(text, validate=True), dtype="<i8").tolist())
