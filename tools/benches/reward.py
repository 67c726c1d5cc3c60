"""The step's rewards and advantages against their definition and the loops that they replace.

What is timed is the function that the trainer calls, `step.advantages.step_advantages`, on a step's tensors; with
--impl naive it takes the definition in `algo`. figures: speedup_vs_definition is over that definition
(`defined_advantages`). speedup_vs_loop is over the loop form of PRIME-RL/PRIME's code (`tensor_loop`), in our words:
its PRM worker (workers/actor/dp_prime.py) makes token-level scores one tensor element at a time, and its estimator
(trainer/ppo/core_algos.py) goes through groups of siblings one by one and then one time step of all sequences after
the other, for each reward source. speedup_vs_column_loop leaves the first of these out. max_abs_diff is the largest
difference to any of them, over rewards, returns and whitened advantages. CPU figures are CPU seconds of one thread.
On CUDA the loops run on the CPU, and ours_us is device time with the launches queued ahead, as in a step.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from prime_megatron.algo.reduction import LOCAL
from prime_megatron.config import LeaveOneOut, TrainConfig
from prime_megatron.step.advantages import defined_advantages, step_advantages
from prime_megatron.types import Advantages, RolloutBatch, Scores
from tools.benches import common

REPEATS = 10  # of ours in one timing on a CPU
SPIN_CYCLES = 2_000_000  # about a millisecond: lets the host queue all launches before the first one starts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sequences", type=int, help="default 64 on CPU, 1024 on CUDA")
    parser.add_argument("--length", type=int, default=3072)
    parser.add_argument("--siblings", type=int, default=4)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--impl", choices=("auto", "triton", "torch", "naive"), default="auto", help="advantage.impl")
    parser.add_argument("--loop-sequences", type=int, default=64, help="the loop form's share; its time is scaled up")
    parser.add_argument("--rounds", type=int, default=5)


@dataclass(frozen=True)
class Step:
    """What the trainer has when it asks for advantages."""

    config: TrainConfig
    batch: RolloutBatch
    scores: Scores


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    where = common.use_device(arguments.device)
    sequences = arguments.sequences or (1024 if where.type == "cuda" else 64)
    looped = min(arguments.loop_sequences, sequences)
    config = make_config(arguments.gamma, arguments.impl)
    small = make_step(config, looped, arguments.length, arguments.siblings)
    step = moved(make_step(config, sequences, arguments.length, arguments.siblings), where)
    figures: dict[str, Any] = {
        "sequences": sequences, "length": arguments.length, "gamma": arguments.gamma, "impl": arguments.impl,
    }  # fmt: skip
    sides: dict[str, Callable[[], Any]] = {
        "definition": lambda: definition(small),
        "loop": lambda: tensor_loop(small, arguments.siblings),
        "column_loop": lambda: column_loop(small, arguments.siblings),
    }
    if where.type == "cpu":
        sides["ours"] = lambda: repeated(lambda: ours(step))
    rounds = arguments.rounds if where.type == "cpu" else 1
    seconds = common.interleaved(sides, rounds, torch.device("cpu"), label="reward")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if where.type == "cpu":
        ours_s = medians["ours"] / REPEATS
    else:
        ours_s = statistics.median(queued_seconds(lambda: ours(step)) for _ in range(20))
        eager = common.interleaved({"ours": lambda: ours(step)}, 20, where)["ours"]
        figures["ours_eager_us"] = round(1e6 * statistics.median(eager), 2)
    scale = sequences / looped
    others = [name for name in sides if name != "ours"]
    figures |= {f"speedup_vs_{name}": round(medians[name] * scale / ours_s, 1) for name in others}
    result = ours(moved(small, where))
    figures["max_abs_diff"] = max(difference(result, sides[name]()) for name in others)
    figures["ours_us"] = round(ours_s * 1e6, 2)
    figures |= {f"{name}_ms": round(medians[name] * 1e3, 2) for name in others}
    return common.line("reward", where, figures, {}, ("triton",))


def ours(step: Step) -> Advantages:
    """As the trainer calls it."""
    return step_advantages(step.config, step.batch, step.scores, LOCAL)


def definition(step: Step) -> Advantages:
    return defined_advantages(step.config, step.batch, step.scores, LOCAL)


def repeated(call: Callable[[], Any]) -> None:
    for _ in range(REPEATS):
        call()


def tensor_loop(step: Step, siblings: int) -> Advantages:
    """Steps 1 to 5 of kernels/reward.py, code form, on padded [N, L] tensors, looping as the original does: token-level
    scores are filled in one element at a time, each the sum of q over its step's tokens, a step being one token."""
    ratios_NL, mask_NL = log_ratios(step)
    scores_NL = torch.zeros_like(ratios_NL)
    for i, length in enumerate(mask_NL.sum(1).tolist()):
        first = 0
        for last in range(length):
            scores_NL[i, last] = ratios_NL[i, first : last + 1].sum()
            first = last + 1
    return _estimated(scores_NL, mask_NL, step, siblings)


def column_loop(step: Step, siblings: int) -> Advantages:
    """The same with token-level scores of whole tensors: what is left are the loops over groups and time steps."""
    ratios_NL, mask_NL = log_ratios(step)
    return _estimated(torch.where(mask_NL, ratios_NL, 0.0), mask_NL, step, siblings)


def log_ratios(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """beta (log prm - log ref) and the response mask, both [N, L]."""
    prm_T, ref_T = step.scores.prm_logprobs_T, step.scores.ref_logprobs_T
    assert prm_T is not None and ref_T is not None
    num_sequences = step.batch.outcome_N.shape[0]
    ratios_NL = step.config.prm.beta * (prm_T - ref_T).view(num_sequences, -1)
    return ratios_NL, step.batch.response_mask_T.view_as(ratios_NL)


def _estimated(rewards_NL: torch.Tensor, mask_NL: torch.Tensor, step: Step, siblings: int) -> Advantages:
    """Steps 2 to 5; the two reward sources each go through the groups and then the time steps."""
    num_sequences, advantage = mask_NL.shape[0], step.config.advantage
    rewards_NL = rewards_NL / (rewards_NL.flip(1).cumsum(1).abs().max() + 1e-6)
    last_NL = torch.arange(mask_NL.shape[1]) == mask_NL.sum(1, keepdim=True) - 1
    outcome_NL = torch.where(last_NL, step.batch.outcome_N[:, None], 0.0)
    sources = (
        (rewards_NL, mask_NL, advantage.process_weight, advantage.gamma_process),
        (outcome_NL, last_NL, advantage.outcome_weight, advantage.gamma_outcome),
    )
    returns_NL = torch.zeros_like(rewards_NL)
    for values_NL, valid_NL, weight, gamma in sources:
        centred_NL = torch.zeros_like(values_NL)
        for first in range(0, num_sequences, siblings):
            rows = range(first, first + siblings)
            base = torch.stack([values_NL[i][valid_NL[i]].mean() for i in rows]).sum() / (siblings - 1)
            for i in rows:
                at = valid_NL[i]
                centred_NL[i][at] = values_NL[i][at] * (siblings / (siblings - 1)) - base
        summed_NL, carry_N = torch.zeros_like(values_NL), torch.zeros(num_sequences)
        for step in reversed(range(values_NL.shape[1])):
            carry_N = centred_NL[:, step] + gamma * carry_N
            summed_NL[:, step] = carry_N
        returns_NL += weight * summed_NL
    returns_NL = torch.where(mask_NL, returns_NL, 0.0)
    kept = returns_NL[mask_NL].double()
    advantages_NL = torch.where(mask_NL, (returns_NL - kept.mean()) / torch.sqrt(kept.var() + 1e-8), 0.0)
    return Advantages(rewards_NL.flatten(), returns_NL.flatten(), advantages_NL.flatten().float())


def make_config(gamma: float, impl: str) -> TrainConfig:
    """The original's algorithm: RLOO in code form, batch norm, whitening."""
    return TrainConfig.model_validate(
        {
            "run": {"output_dir": "unused", "steps": 1},
            "models": {"policy": {"path": "unused"}},
            "data": {"train": ("unused",)},
            "advantage": {
                "leave_one_out": LeaveOneOut.code, "gamma_process": gamma, "gamma_outcome": gamma, "impl": impl,
            },
        }
    )  # fmt: skip


def make_step(config: TrainConfig, sequences: int, length: int, siblings: int) -> Step:
    """Equal sequences without prompts, each with a random share of its tail cut off by the mask."""
    draw = torch.Generator().manual_seed(0)
    kept_N = torch.randint(length // 2, length + 1, (sequences,), generator=draw)
    mask_T = (torch.arange(length)[None, :] < kept_N[:, None]).flatten()
    prm_T = -torch.rand(sequences * length, generator=draw)
    ref_T = prm_T + 0.1 * torch.randn(sequences * length, generator=draw)
    nothing_N = torch.zeros(sequences, dtype=torch.int64)
    batch = RolloutBatch(
        tokens_T=torch.zeros(sequences * length, dtype=torch.int64),
        cu_seqlens=torch.arange(sequences + 1) * length,
        response_mask_T=mask_T,
        group_N=torch.arange(sequences) // siblings,
        outcome_N=torch.randint(2, (sequences,), generator=draw).float(),
        truncated_N=nothing_N.bool(),
        version_N=nothing_N,
        engine_logprobs_T=torch.zeros_like(prm_T),
        step_end_T=torch.zeros_like(mask_T),
        num_tokens=int(kept_N.sum()),
        num_sequences=sequences,
    )
    return Step(config, batch, Scores(None, ref_T, None, prm_T))


def moved(step: Step, where: torch.device) -> Step:
    scores = step.scores
    on_device = Scores(None, scores.ref_logprobs_T.to(where), None, scores.prm_logprobs_T.to(where))  # type: ignore[union-attr]
    tensors = {name: value.to(where) for name, value in vars(step.batch).items() if isinstance(value, torch.Tensor)}
    return Step(step.config, dataclasses.replace(step.batch, **tensors), on_device)


def queued_seconds(call: Any) -> float:
    """Device seconds of a call whose launches are all queued before the first one runs."""
    call()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(SPIN_CYCLES)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def difference(ours: Advantages, loop: Advantages) -> float:
    return max(float((a.cpu() - b).abs().max()) for a, b in zip(vars(ours).values(), vars(loop).values(), strict=True))
