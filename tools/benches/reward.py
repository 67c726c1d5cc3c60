"""The reward path against the loops it replaces.

figures: speedup_vs_loop is over the package's own definition, a token at a time in Python numbers without any tensor;
speedup_vs_column_loop is over the shape of PRIME-RL/PRIME's code (`column_loop`: groups of siblings one by one, then
one time step of all sequences after the other, for each reward source). max_abs_diff is the largest difference to
either, over rewards, returns and whitened advantages. On CUDA the loops run on the CPU, and ours_us is device time
with the launches queued ahead, as in a step.
"""

import argparse
import statistics
from typing import Any

import torch

from benches import common
from prime_megatron.kernels.reward import RewardBatch, RewardForm, RewardResult, process_advantages

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
        "column_loop": lambda: column_loop(small, form, arguments.siblings),
        "loop": lambda: process_advantages(small, form, impl="loop"),
    }
    if where.type == "cpu":
        sides["ours"] = lambda: [process_advantages(batch, form) for _ in range(10)]
    rounds = arguments.rounds if where.type == "cpu" else 1
    seconds = common.interleaved(sides, rounds, torch.device("cpu"))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    if where.type == "cpu":
        ours_s = medians["ours"] / 10
    else:
        ours_s = statistics.median(queued_seconds(lambda: process_advantages(batch, form)) for _ in range(20))
        eager = common.interleaved({"ours": lambda: process_advantages(batch, form)}, 20, where)["ours"]
        figures["ours_eager_us"] = round(1e6 * statistics.median(eager), 2)
    scale = sequences / looped
    figures["speedup_vs_loop"] = round(medians["loop"] * scale / ours_s, 1)
    figures["speedup_vs_column_loop"] = round(medians["column_loop"] * scale / ours_s, 1)
    ours = process_advantages(moved(small, where), form)
    figures["max_abs_diff"] = max(difference(ours, side()) for name, side in sides.items() if name != "ours")
    figures |= {"ours_us": round(ours_s * 1e6, 2), "loop_ms": round(medians["loop"] * 1e3, 2),
                "column_loop_ms": round(medians["column_loop"] * 1e3, 2)}  # fmt: skip
    return common.line("reward", where, figures, {}, ("triton",))


def column_loop(batch: RewardBatch, form: RewardForm, siblings: int) -> RewardResult:
    """Steps 1 to 5 of kernels/reward.py, code form, on padded [N, L] tensors, looping as the original does.

    Its two reward sources, process and outcome, each go through the groups and then the time steps.
    """
    num_sequences = batch.outcome_N.shape[0]
    prm_NL, ref_NL, mask_NL = (
        x.view(num_sequences, -1) for x in (batch.prm_logprobs_T, batch.ref_logprobs_T, batch.response_mask_T)
    )
    rewards_NL = torch.where(mask_NL, form.scale * (prm_NL - ref_NL), 0.0)
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
