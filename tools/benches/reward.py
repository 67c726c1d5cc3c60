"""The reward path against its per-token loop form, as the public codes write it.

figures: speedup_vs_loop, and max_abs_diff between the two over rewards, returns and whitened advantages. On CUDA the
loop runs on the CPU (the codes do so), and ours_us is device time with the launches queued ahead, as in a step.
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
    cpu = torch.device("cpu")
    batch = moved(make_batch(sequences, arguments.length, arguments.siblings), where)
    figures: dict[str, Any] = {"sequences": sequences, "length": arguments.length, "gamma": arguments.gamma}
    if where.type == "cpu":
        sides = {
            "loop": lambda: process_advantages(small, form, impl="loop"),
            "ours": lambda: [process_advantages(batch, form) for _ in range(10)],
        }
        seconds = common.interleaved(sides, arguments.rounds, where)
        ours_s = statistics.median(seconds["ours"]) / 10
        loop_s = statistics.median(seconds["loop"])
    else:
        loop_s = statistics.median(
            common.interleaved({"loop": lambda: process_advantages(small, form, impl="loop")}, 1, cpu)["loop"]
        )
        ours_s = statistics.median(queued_seconds(lambda: process_advantages(batch, form)) for _ in range(20))
        figures["ours_eager_us"] = round(
            1e6 * statistics.median(
                common.interleaved({"ours": lambda: process_advantages(batch, form)}, 20, where)["ours"]
            ), 2
        )  # fmt: skip
    figures["speedup_vs_loop"] = round(loop_s * (sequences / looped) / ours_s, 1)
    figures["max_abs_diff"] = difference(
        process_advantages(moved(small, where), form), process_advantages(small, form, impl="loop")
    )
    figures |= {"ours_us": round(ours_s * 1e6, 2), "loop_ms": round(loop_s * 1e3, 2)}
    return common.line("reward", where, figures, {}, ("triton",))


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
