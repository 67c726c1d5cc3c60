"""The reward path against the loops it replaces.

figures: speedup_vs_loop is over the loop form of PRIME-RL/PRIME's code (`tensor_loop`), in our words: its PRM worker
(workers/actor/dp_prime.py) makes token-level scores one tensor element at a time, and its estimator
(trainer/ppo/core_algos.py) goes through groups of siblings one by one and then one time step of all sequences after
the other, for each reward source. speedup_vs_column_loop leaves the first of these out; speedup_vs_float_loop is over
this package's own definition, a token at a time in Python numbers without any tensor. max_abs_diff is the largest
difference to any of them, over rewards, returns and whitened advantages. CPU figures are CPU seconds of one thread.
On CUDA the loops run on the CPU, and ours_us is device time with the launches queued ahead, as in a step.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from prime_megatron.kernels.reward import RewardBatch, RewardForm, RewardResult, process_advantages
from tools.benches import common

REPEATS = 10  # of ours in one timing on a CPU
SPIN_CYCLES = 2_000_000  # about a millisecond: lets the host queue all launches before the first one starts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sequences", type=int, help="default 64 on CPU, 1024 on CUDA")
    parser.add_argument("--length", type=int, default=3072)
    parser.add_argument("--siblings", type=int, default=4)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--loop-sequences", type=int, default=64, help="the loop form's share; its time is scaled up")
    parser.add_argument("--rounds", type=int, default=5)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    where = common.use_device(arguments.device)
    sequences = arguments.sequences or (1024 if where.type == "cuda" else 64)
    form = RewardForm(
        scale=0.05, batch_norm=True, leave_one_out="code", process_weight=1.0, outcome_weight=1.0,
        gamma_process=arguments.gamma, gamma_outcome=arguments.gamma, whiten=True,
    )  # fmt: skip
    looped = min(arguments.loop_sequences, sequences)
    small = make_batch(looped, arguments.length, arguments.siblings)
    batch = moved(make_batch(sequences, arguments.length, arguments.siblings), where)
    figures: dict[str, Any] = {"sequences": sequences, "length": arguments.length, "gamma": arguments.gamma}
    sides = {
        "loop": lambda: tensor_loop(small, form, arguments.siblings),
        "column_loop": lambda: column_loop(small, form, arguments.siblings),
        "float_loop": lambda: process_advantages(small, form, impl="loop"),
    }
    if where.type == "cpu":
        sides["ours"] = lambda: repeated(lambda: process_advantages(batch, form))
    rounds = arguments.rounds if where.type == "cpu" else 1
    seconds = common.interleaved(sides, rounds, torch.device("cpu"), label="reward")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if where.type == "cpu":
        ours_s = medians["ours"] / REPEATS
    else:
        ours_s = statistics.median(queued_seconds(lambda: process_advantages(batch, form)) for _ in range(20))
        eager = common.interleaved({"ours": lambda: process_advantages(batch, form)}, 20, where)["ours"]
        figures["ours_eager_us"] = round(1e6 * statistics.median(eager), 2)
    scale = sequences / looped
    loops = [name for name in sides if name != "ours"]
    figures |= {f"speedup_vs_{name}": round(medians[name] * scale / ours_s, 1) for name in loops}
    ours = process_advantages(moved(small, where), form)
    figures["max_abs_diff"] = max(difference(ours, sides[name]()) for name in loops)
    figures["ours_us"] = round(ours_s * 1e6, 2)
    figures |= {f"{name}_ms": round(medians[name] * 1e3, 2) for name in loops}
    return common.line("reward", where, figures, {}, ("triton",))


def repeated(call: Callable[[], Any]) -> None:
    for _ in range(REPEATS):
        call()


def tensor_loop(batch: RewardBatch, form: RewardForm, siblings: int) -> RewardResult:
    """Steps 1 to 5 of kernels/reward.py, code form, on padded [N, L] tensors, looping as the original does: token-level
    scores are filled in one element at a time, each the sum of q over its step's tokens, a step being one token."""
    num_sequences = batch.outcome_N.shape[0]
    ratios_NL = form.scale * (batch.prm_logprobs_T - batch.ref_logprobs_T).view(num_sequences, -1)
    scores_NL = torch.zeros_like(ratios_NL)
    for i, length in enumerate(batch.response_mask_T.view(num_sequences, -1).sum(1).tolist()):
        first = 0
        for last in range(length):
            scores_NL[i, last] = ratios_NL[i, first : last + 1].sum()
            first = last + 1
    return _estimated(scores_NL, batch, form, siblings)


def column_loop(batch: RewardBatch, form: RewardForm, siblings: int) -> RewardResult:
    """The same with token-level scores of whole tensors: what is left are the loops over groups and time steps."""
    mask_NL = batch.response_mask_T.view(batch.outcome_N.shape[0], -1)
    ratios_NL = form.scale * (batch.prm_logprobs_T - batch.ref_logprobs_T).view_as(mask_NL)
    return _estimated(torch.where(mask_NL, ratios_NL, 0.0), batch, form, siblings)


def _estimated(rewards_NL: torch.Tensor, batch: RewardBatch, form: RewardForm, siblings: int) -> RewardResult:
    """Steps 2 to 5; the two reward sources each go through the groups and then the time steps."""
    num_sequences, mask_NL = batch.outcome_N.shape[0], batch.response_mask_T.view_as(rewards_NL)
    rewards_NL = rewards_NL / (rewards_NL.flip(1).cumsum(1).abs().max() + 1e-6)
    last_NL = torch.arange(mask_NL.shape[1]) == mask_NL.sum(1, keepdim=True) - 1
    outcome_NL = torch.where(last_NL, batch.outcome_N[:, None], 0.0)
    sources = (
        (rewards_NL, mask_NL, form.process_weight, form.gamma_process),
        (outcome_NL, last_NL, form.outcome_weight, form.gamma_outcome),
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
    return RewardResult(rewards_NL.flatten(), returns_NL.flatten(), advantages_NL.flatten().float())


def make_batch(sequences: int, length: int, siblings: int) -> RewardBatch:
    """Equal sequences without prompts, each with a random share of its tail cut off by the mask."""
    draw = torch.Generator().manual_seed(0)
    kept_N = torch.randint(length // 2, length + 1, (sequences,), generator=draw)
    mask_NL = torch.arange(length)[None, :] < kept_N[:, None]
    prm_T = -torch.rand(sequences * length, generator=draw)
    ref_T = prm_T + 0.1 * torch.randn(sequences * length, generator=draw)
    return RewardBatch(
        prm_T, ref_T, mask_NL.flatten(), torch.arange(sequences + 1) * length, torch.arange(sequences) // siblings,
        torch.randint(2, (sequences,), generator=draw).float(),
    )  # fmt: skip


def moved(batch: RewardBatch, where: torch.device) -> RewardBatch:
    return RewardBatch(*(value.to(where) for value in vars(batch).values()))


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


def difference(ours: RewardResult, loop: RewardResult) -> float:
    return max(float((a.cpu() - b).abs().max()) for a, b in zip(vars(ours).values(), vars(loop).values(), strict=True))
