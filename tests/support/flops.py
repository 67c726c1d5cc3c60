"""FLOPs of a whole trainer step on replayed rollouts, in units of one forward over the same tokens.

F is counted, not computed: one scoring forward of the policy over the batch, under the same counter. A backward is then
2 F by nature: the fused head does its three products in the forward, which adds up to the same.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, addmm_flop, sdpa_flop_count

from prime_megatron.trainer import PrimeTrainer

aten: Any = torch.ops.aten
PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 8, 4, 4, 12
"""Equal lengths, so that four mini-batches are equal shares of the tokens."""
SCHEDULES = {
    "forwards_single_1": ("after", 1, 7.0),
    "forwards_single_4": ("after", 4, 7.75),
    "forwards_double_1": ("before", 1, 8.0),
    "forwards_double_4": ("before", 4, 8.75),
}
"""Figure: (prm.update, mini-batches of both roles, F that is necessary)."""


def schedule(update: str, minis: int) -> dict[str, Any]:
    """The settings of a schedule, with a KL term, whose reference is the PRM's."""
    return {
        "prm": {"update": update},
        "policy": {"kl_place": "loss", "kl_coef": 0.1},
        "models": {"policy": {"num_mini_batches": minis}, "prm": {"num_mini_batches": minis}},
    }


def make_recording(path: Path, *, steps: int, vocab: int) -> str:
    """Rollouts of random tokens with random outcomes, as rollout.record writes them; returns the path."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(4, vocab) for _ in range(count)]

    with path.open("w") as file:
        for step in range(1, steps + 1):
            groups = [_group(f"{step}-{index}", index, tokens, rng) for index in range(PROMPTS)]
            file.write(json.dumps({"step": step, "groups": groups}) + "\n")
    return str(path)


def _group(uid: str, draw: int, tokens: Any, rng: random.Random) -> dict[str, Any]:
    ids = tokens(PROMPT_TOKENS)
    prompt = {"uid": uid, "draw": draw, "token_ids": ids, "ability": "exact", "ground_truth": "1", "told_ids": ids}
    samples = [
        {
            "token_ids": tokens(NEW_TOKENS),
            "logprobs": [-rng.random() for _ in range(NEW_TOKENS)],
            "finish": "length",
            "version": 0,
            "outcome": float((draw + sample) % 2),
            "verdict": "correct",
        }
        for sample in range(SAMPLES)
    ]
    return {"prompt": prompt, "samples": samples}


def step_forwards(trainer: PrimeTrainer, index: int) -> float:
    """FLOPs of ``trainer.step(index)`` over those of one forward on its batch."""
    with _counter() as step:
        record = trainer.step(index)
    micro = [micro for mini in record.batch.policy for micro in mini.micro]
    with _counter() as forward:
        trainer.parts.roles.policy.logprobs(micro, record.batch.num_local_tokens)
    return step.get_total_flops() / forward.get_total_flops()


def _counter() -> FlopCounterMode:
    """torch's counter, taught what it does not know: the CPU's attention (a backward is two forwards) and addmm_."""

    def forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * sdpa_flop_count(query, key, value)

    def in_place(whole: Any, one: Any, two: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return addmm_flop(whole, one, two)

    def linear(shape: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return 2 * math.prod(shape) * weight[0]

    formulas = {
        torch.ops.mkldnn._linear_pointwise: linear,
        aten.addmm_: in_place,
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)
