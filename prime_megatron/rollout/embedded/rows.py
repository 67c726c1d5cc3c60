"""The state of the embedded engine's responses in progress.

Legend: B rows in progress, M most response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prime_megatron.rollout.engine import Completion, Request
from prime_megatron.rollout.sampling import uniforms


@dataclass
class Rows:
    """The rows in progress; every tensor has one entry a row."""

    index: Tensor  # int64, place of the request in the call
    position: Tensor  # int64, where the next input token goes
    token: Tensor  # int64, the next input token
    count: Tensor  # int64, tokens made
    limit: Tensor  # int64, most tokens
    temperature: Tensor  # float32
    top_p: Tensor  # float32
    greedy: Tensor  # bool
    uniform: Tensor  # float64 [B, M + 1]; column M is spare, as below
    ended: Tensor  # bool, made an end token
    tokens: Tensor  # int64 [B, M + 1]
    logprobs: Tensor  # float32 [B, M + 1]

    @classmethod
    def of(cls, requests: Sequence[Request], places: Sequence[int], width: int, device: torch.device) -> Rows:
        """Rows for requests[place], at their last prompt token."""
        chosen = [requests[place] for place in places]
        uniform = torch.zeros(len(chosen), width + 1, dtype=torch.float64)
        for row, request in enumerate(chosen):
            if not request.sampling.greedy:
                limit = request.sampling.max_tokens
                uniform[row, :limit] = torch.from_numpy(uniforms(request.key, limit))
        integers = torch.tensor(
            [
                (place, len(r.prompt_ids) - 1, r.prompt_ids[-1], 0, r.sampling.max_tokens)
                for place, r in zip(places, chosen, strict=True)
            ],
        ).to(device)
        floats = torch.tensor([(r.sampling.temperature, r.sampling.top_p) for r in chosen]).to(device)
        return cls(
            *integers.unbind(1),
            temperature=floats[:, 0],
            top_p=floats[:, 1],
            greedy=torch.tensor([r.sampling.greedy for r in chosen], device=device),
            uniform=uniform.to(device),
            ended=torch.zeros(len(chosen), dtype=torch.bool, device=device),
            tokens=torch.zeros(len(chosen), width + 1, dtype=torch.long, device=device),
            logprobs=torch.zeros(len(chosen), width + 1, device=device),
        )

    def completions(self, finished: Tensor, requests: Sequence[Request]) -> Iterator[tuple[Completion, int]]:
        """The finished rows' completions, each with its place in the call."""
        for row in finished.nonzero().squeeze(1).tolist():
            place, count = int(self.index[row]), int(self.count[row])
            yield (
                Completion(
                    request=requests[place],
                    token_ids=tuple(self.tokens[row, :count].tolist()),
                    logprobs=tuple(self.logprobs[row, :count].tolist()),
                    finish="stop" if bool(self.ended[row]) else "length",
                ),
                place,
            )

    def select(self, row_B: Tensor) -> Rows:
        """Those rows alone."""
        return Rows(**{name: value[row_B] for name, value in vars(self).items()})

    def join(self, other: Rows) -> Rows:
        """These rows, then the others."""
        return Rows(**{name: torch.cat([value, vars(other)[name]]) for name, value in vars(self).items()})
