"""Which figures are drawn, together with what, and what they tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prime_megatron.report.curves import Curve, curve_of
from prime_megatron.report.run import Run


@dataclass(frozen=True)
class Line:
    """Metrics of one meaning."""

    pattern: str
    """Matches the whole name of a metric; where it has a group, the group is the label."""
    label: str = ""
    several: bool = False
    """Left out where a run has only one of them, which is then what another line shows."""


@dataclass(frozen=True)
class Picture:
    """A picture of curves over the steps."""

    title: str
    tells: str
    """What to see in it, for a reader who knows PRIME."""
    lines: tuple[Line, ...]
    log: bool = False
    level: float | None = None
    """A value that divides good from bad, drawn as a thin line."""

    def curves(self, runs: Sequence[Run]) -> list[Curve]:
        """Its curves, run by run; empty where no run has one of its metrics."""
        found = []
        for index, run in enumerate(runs):
            for label, key in self._keys(run.metrics):
                curve = curve_of(run.metrics, key, run=index, label=label)
                if curve is not None:
                    found.append(curve)
        return found

    def _keys(self, metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        """(label, metric), in the order of the lines."""
        names = sorted({key for row in metrics for key in row})
        found: dict[str, str] = {}
        for line in self.lines:
            matches = [match for name in names if (match := re.fullmatch(line.pattern, name)) is not None]
            for match in matches if len(matches) > 1 or not line.several else []:
                found.setdefault(match[0], match[1] if match.groups() else line.label)
        return [(label, name) for name, label in found.items()]


@dataclass(frozen=True)
class Section:
    """Pictures under one heading."""

    title: str
    pictures: tuple[Picture, ...]


def _health(name: str, label: str) -> Line:
    return Line(f"prm_health/{name}", label)


SECTIONS = (
    Section("Outcome", (
        Picture("Outcome in training", "Mean outcome of all generated responses, and of those that the filter kept.",
                (Line("rollout/outcome", "generated"), Line("outcome/mean", "trained on"))),
        Picture("Held-out accuracy", "Answers that are right in full, of each held-out set.",
                (Line("eval/accuracy", "greedy"), Line("eval/sampled_accuracy", "sampled"),
                 Line("eval/(macro)/accuracy"), Line(r"eval/([^/]+)/accuracy"),
                 Line(r"eval/accuracy/data_source/(.+)", several=True))),
        Picture("Learned by supervision", "Loss of a response token in a supervised run.", (Line("sft/loss", "loss"),)),
    )),
    Section("The process reward model", (
        Picture("Does the PRM tell right from wrong?", "On the responses it is about to learn from; 0.5 is a coin.",
                (Line("prm/accuracy", "right or wrong"), Line("prm/pair_accuracy", "pairs of siblings"),
                 Line("eval/prm_accuracy", "held-out rows"), Line("eval/prm_pair_accuracy", "held-out pairs")),
                level=0.5),
        Picture("PRM health", "On responses that it never learns from. Towards 0.5 or its frozen copy it forgets, "
                "below it pays for the wrong ones.",
                (_health("pair_accuracy", "pairs"), _health("auc", "AUC"),
                 _health("frozen_pair_accuracy", "frozen copy, pairs")), level=0.5),
        Picture("Do rewards follow the outcome?", "Correlation of a response's mean process reward with its outcome, "
                "among siblings. Below 0 it pays for what is wrong.",
                (Line("process_reward/outcome_correlation", "correlation"),), level=0.0),
        Picture("How sure, how right?", "Brier score (0.25 is a coin) and calibration error; lower is better.",
                (Line("prm/brier", "Brier"), Line("prm/calibration_error", "calibration error"),
                 _health("brier", "Brier, held out"), _health("calibration_error", "calibration error, held out"))),
        Picture("Where does the reward lie?", "Parts of the sum of |reward|. Most of it on few, on improbable, or on "
                "delimiter tokens: the PRM is being gamed.",
                (Line("process_reward/largest_share", "largest 1 % of tokens"),
                 Line("process_reward/improbable_share", "improbable tokens"), _health("delimiter_share", "delimiters"),
                 _health("last_share", "last tokens"))),
        Picture("Reward of right and wrong", "Mean token reward of held-out responses. Right ones should be above.",
                (_health("reward_right", "right"), _health("reward_wrong", "wrong")), level=0.0),
        Picture("PRM loss", "What the PRM learns from.",
                (Line("prm/loss", "loss"), Line("eval/prm_ce", "held-out ce"))),
    )),
    Section("The policy", (
        Picture("Entropy", "Of the next token, in nats. A fall to 0 ends exploration.",
                (Line("policy/entropy", "entropy"),)),
        Picture("KL", "From the policy before the update, and from the reference, in nats.",
                (Line("policy/approx_kl", "old policy"), Line("policy/kl_reference", "reference"))),
        Picture("Clipped tokens", "Tokens without a gradient because the ratio is out of bounds.",
                (Line("policy/clip_low", "below"), Line("policy/clip_high", "above"))),
        Picture("Gradient norm", "Before clipping.", (Line("(policy|prm|critic|sft)/grad_norm"),), log=True),
        Picture("Length of responses", "In tokens.",
                (Line("response/length_mean", "mean"), Line("response/length_max", "longest"),
                 Line("response/length_min", "shortest"), Line("eval/response_tokens", "held out, greedy"))),
        Picture("Cut at the length limit", "Share of responses.",
                (Line("response/truncated", "training"), Line("eval/truncated", "held out"),
                 Line(r"eval/([^/]+)/truncated"))),
    )),
    Section("The filter", (
        Picture("Prompts kept", "Share of the prompts asked whose outcomes lie within the filter's bounds.",
                (Line("rollout/pass_rate", "kept"), Line(r"rollout/pass_rate/data_source/(.+)", several=True))),
        Picture("Prompts dropped", "Too easy and too hard should balance; what expires was generated for nothing.",
                (Line("rollout/too_easy", "too easy"), Line("rollout/too_hard", "too hard"),
                 Line("rollout/truncated_groups", "truncated"), Line("rollout/expired", "expired"))),
    )),
    Section("The machine", (
        Picture("Tokens per second", "Prompt and response tokens over the step's seconds.",
                (Line("speed/tokens_per_s", "tokens/s"),)),
        Picture("Utilisation", "Model FLOPs over the measured speed of matrix products.",
                (Line("speed/utilisation", "utilisation"),)),
        Picture("Engine against trainer", "Difference of their log-probs of the same tokens, in nats: rounding alone, "
                "unless they compute two models.",
                (Line("engine/logprob_gap_mean", "mean"), Line("engine/logprob_gap_max", "largest"),
                 Line("engine/kl", "KL")), log=True),
        Picture("Waiting for verdicts", "Part of the step in which generation was done and verdicts were not.",
                (Line("speed/verify_wait_share", "share"),)),
    )),
)  # fmt: skip
