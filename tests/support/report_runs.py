"""Run folders that no run wrote: any number of steps and responses, and what is wrong with them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = "the sum of two terms is then again equal to what we had before so that holds and".split()
DIFFERENT = 40
NASTY = '</script><script>document.title="taken"</script><b onclick=x>&amp; 😀'


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def metrics_row(step: int) -> dict[str, Any]:
    """A row with the figures of most pictures; the first step has no PRM figures."""
    row = {
        "step": step, "rollout/outcome": 0.5 + 0.01 * step, "outcome/mean": 0.5, "policy/entropy": 1.0 / (step + 1),
        "policy/approx_kl": 0.001 * step, "rollout/pass_rate": 0.75, "rollout/too_easy": 1.0, "rollout/too_hard": 2.0,
        "response/length_mean": 30.0 + step, "engine/logprob_gap_mean": 1e-6, "engine/restarts": float(step >= 3),
        "time/rollout_s": 2.0, "time/policy_s": 1.0, "time/step_s": 3.5, "speed/tokens_per_s": 100.0,
    }  # fmt: skip
    if step > 0:
        row |= {"prm/accuracy": 0.7, "prm/pair_accuracy": 0.8, "process_reward/outcome_correlation": 0.4}
    if step % 2 == 0:
        row |= {"eval/accuracy": 0.1 * step, "eval/amc/accuracy": 0.05 * step}
    return row


def sample_row(
    step: int, draw: int, sample: int, pieces: list[str], rewards: list[float], **changes: Any
) -> dict[str, Any]:
    """A trained response of these tokens; right where the sample's number is even, and the PRM knows it."""
    right = sample % 2 == 0
    ends, end = [], 0
    for piece in pieces:
        end += len(piece)
        ends.append(end)
    row = {
        "step": step, "kind": "trained", "filter": "kept", "uid": f"0-{draw}", "data_source": "set", "ability": "math",
        "ground_truth": "4", "draw": draw, "sample": sample, "version": step, "prompt": f"prompt {draw}",
        "response": "".join(pieces), "token_ids": list(range(len(pieces))), "token_ends": ends, "finish": "stop",
        "outcome": float(right), "verdict": "correct" if right else "wrong", "reason": "same text",
        "prm_probability": 0.7 if right else 0.3, "step_ends": [len(pieces) - 1], "process_rewards": rewards,
        "returns": [], "advantages": [],
    }  # fmt: skip
    return row | changes


def random_samples(
    steps: Sequence[int], *, prompts: int, samples: int, tokens: int, seed: int = 0
) -> Iterable[dict[str, Any]]:
    """Responses of random words in lines, with random rewards; made of a few dozen long ones, which takes less time."""
    draw = random.Random(seed)
    made = []
    for _ in range(min(DIFFERENT, prompts * samples * len(steps))):
        pieces = [
            "\n" if place % 12 == 11 else f" {draw.choice(WORDS)}" if draw.random() < 0.8 else str(draw.randrange(99))
            for place in range(tokens)
        ]
        made.append((pieces, [round(draw.gauss(0.0, 0.1), 4) for _ in pieces]))
    for step in steps:
        for prompt in range(prompts):
            for sample in range(samples):
                yield sample_row(step, step * prompts + prompt, sample, *draw.choice(made))


def write_run(folder: Path, steps: int = 6, *, samples: Iterable[Mapping[str, Any]] = ()) -> Path:
    """A finished run's metrics and samples."""
    write_lines(folder / "metrics.jsonl", [metrics_row(step) for step in range(steps + 1)])
    write_lines(folder / "samples.jsonl", samples)
    return folder


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
