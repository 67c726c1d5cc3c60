"""What the sampled responses say of the PRM: pictures and figures of right against wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from prime_megatron.report.draw import DASHES, draw, named, series
from prime_megatron.report.figure import Figure, Key
from prime_megatron.report.response import Response
from prime_megatron.report.samples import Judged, Shown

NUM_BINS = 10
PROFILE_BINS = 20
Z = 1.96
"""Of a 95 % interval."""


@dataclass(frozen=True)
class Standing:
    """How well a run's PRM told right from wrong in the last half of its sampled steps."""

    num_responses: int
    auc: float
    """P(probability of a right response > that of a wrong one), a tie one half; NaN without both."""
    right: float
    """Mean probability that it gave right responses."""
    wrong: float


def in_words(found: Standing) -> str:
    """What the AUC says."""
    if math.isnan(found.auc):
        return "responses of one outcome only"
    if found.auc < 0.4:
        return "pays for wrong responses: its labels or its sign are turned over, or it has collapsed"
    if found.auc < 0.6:
        return "says nothing of the outcome"
    return "tells right from wrong"


def late(judged: Sequence[Judged]) -> list[Judged]:
    """Those of the last half of the sampled steps."""
    steps = sorted({one.step for one in judged})
    return [one for one in judged if one.step >= steps[len(steps) // 2]] if steps else []


def standing(judged: Sequence[Judged]) -> Standing | None:
    """None where no response has a probability."""
    own = late(judged)
    if not own:
        return None
    right = [one.probability for one in own if one.outcome > 0.5]
    wrong = [one.probability for one in own if one.outcome <= 0.5]
    mean_right, mean_wrong = (fmean(values) if values else math.nan for values in (right, wrong))
    return Standing(len(own), _auc(right, wrong), mean_right, mean_wrong)


def _auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """By ranks; ties have their mean rank."""
    if not right or not wrong:
        return math.nan
    both = sorted([*((value, 1) for value in right), *((value, 0) for value in wrong)])
    rank_sum, place = 0.0, 0
    while place < len(both):
        end = place
        while end < len(both) and both[end][0] == both[place][0]:
            end += 1
        rank_sum += (place + 1 + end) / 2 * sum(is_right for _, is_right in both[place:end])
        place = end
    return (rank_sum - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong))


@dataclass(frozen=True)
class Bin:
    """Responses of about the same probability."""

    probability: float
    outcome: float
    low: float
    high: float
    count: int


def calibration(judged: Sequence[Judged]) -> list[Bin]:
    """Bins of equally many responses, by probability, with Wilson's 95 % interval of the outcome."""
    ordered = sorted(judged, key=lambda one: one.probability)
    found = []
    for index in range(NUM_BINS):
        own = ordered[len(ordered) * index // NUM_BINS : len(ordered) * (index + 1) // NUM_BINS]
        if own:
            outcome = fmean(one.outcome for one in own)
            low, high = wilson(outcome, len(own))
            found.append(Bin(fmean(one.probability for one in own), outcome, low, high, len(own)))
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """Ends of the 95 % interval of a share (Wilson 1927)."""
    middle = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    half = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return middle - half, middle + half


def calibration_figure(names: Sequence[str], judged: Sequence[Sequence[Judged]]) -> Figure | None:
    """Probability against outcome, every run; None where no response has a probability."""
    bins = [calibration(late(own)) for own in judged]
    if not any(bins):
        return None
    keys = [Key(name, run, f"c{run}", 0) for run, name in enumerate(names) if bins[run]]

    def paint(axes: Any) -> None:
        given = [bin.probability for own in bins for bin in own]
        room = max(0.02, 0.08 * (max(given) - min(given)))
        axes.set_xlim(max(0.0, min(given) - room), min(1.0, max(given) + room))
        axes.set_ylim(-0.02, 1.02)
        axes.plot((0, 1), (0, 1), color=named("level"), linewidth=0.9, linestyle=DASHES[1])
        for run, own in enumerate(bins):
            x, y = [bin.probability for bin in own], [bin.outcome for bin in own]
            bars = [[max(0.0, bin.outcome - bin.low) for bin in own], [max(0.0, bin.high - bin.outcome) for bin in own]]
            axes.errorbar(x, y, bars, color=series(run), linewidth=1.2, elinewidth=0.9, marker="o", markersize=3.5)
            if len(bins) > 1 and own:
                axes.annotate(str(run + 1), (x[-1], y[-1]), (5, 0), textcoords="offset points", color=named("text"))
        axes.set_xlabel("probability that the PRM gave", color=named("text"))
        axes.set_ylabel("share that was right", color=named("text"))

    tells = (
        "Responses of the last half of the sampled steps, in ten bins of equally many. On the dashed line the PRM is "
        "as sure as it should be; a line that falls pays for wrong responses."
    )
    return Figure("Calibration of the PRM", tells, draw(paint, "calibration", size=(400, 250)).svg, keys)


def separation_figure(name: str, judged: Sequence[Judged]) -> Figure | None:
    """The probabilities of right and of wrong responses; None without both."""
    own = late(judged)
    right = [one.probability for one in own if one.outcome > 0.5]
    wrong = [one.probability for one in own if one.outcome <= 0.5]
    if not right or not wrong:
        return None

    def paint(axes: Any) -> None:
        low, high = min(right + wrong), max(right + wrong)
        edges = [low + (high - low or 1.0) * place / PROFILE_BINS for place in range(PROFILE_BINS + 1)]
        for values, ink, dash in ((right, "positive", 0), (wrong, "negative", 1)):
            weights = [1 / len(values)] * len(values)
            axes.hist(values, edges, weights=weights, histtype="stepfilled", color=named(ink), alpha=0.22)
            axes.hist(
                values, edges, weights=weights, histtype="step", color=named(ink), linestyle=DASHES[dash], linewidth=1.4
            )
            axes.axvline(fmean(values), color=named(ink), linestyle=DASHES[dash], linewidth=1.0)
        axes.set_xlabel("probability that the PRM gave", color=named("text"))
        axes.set_ylabel("share of responses", color=named("text"))

    keys = [Key("right", 0, "positive", 0), Key("wrong", 0, "negative", 1)]
    tells = "Uprights are the means. Right should lie to the right of wrong; two hills in one place know nothing."
    return Figure(
        f"What the PRM gives right and wrong: {name}", tells, draw(paint, f"p {name}", size=(400, 250)).svg, keys
    )


def profile_figure(name: str, shown: Shown) -> Figure | None:
    """Mean reward along right and wrong responses; None where no response shown has rewards."""
    responses = [response for group in shown.groups for response in group.responses if response.rewards]
    lines = {
        label: _profile([response for response in responses if response.right is right])
        for label, right in (("right", True), ("wrong", False))
    }
    if not all(lines.values()):
        return None
    keys = [Key("right", 0, "positive", 0), Key("wrong", 0, "negative", 1)]

    def paint(axes: Any) -> None:
        axes.axhline(0.0, color=named("level"), linewidth=0.8)
        places = [(bin + 0.5) * 100 / PROFILE_BINS for bin in range(PROFILE_BINS)]
        for key, values in zip(keys, lines.values(), strict=True):
            axes.plot(
                places,
                values,
                color=named(key.colour),
                linestyle=DASHES[key.dash],
                linewidth=1.4,
                marker="o",
                markersize=2.6,
            )
        axes.set_xlabel("place in the response, %", color=named("text"))
        axes.set_ylabel("mean reward of a token", color=named("text"))
        axes.set_xlim(0, 100)

    tells = "Of the responses shown below. Apart where the PRM sees the difference; together where it sees none."
    return Figure(f"Reward along a response: {name}", tells, draw(paint, f"profile {name}", size=(400, 250)).svg, keys)


def _profile(responses: Sequence[Response]) -> list[float]:
    """Mean reward in each part of the responses; NaN where there is no token; empty without responses."""
    sums, counts = [0.0] * PROFILE_BINS, [0] * PROFILE_BINS
    for response in responses:
        for place, reward in enumerate(response.rewards):
            if math.isfinite(reward):
                part = place * PROFILE_BINS // len(response.rewards)
                sums[part] += reward
                counts[part] += 1
    return [total / count if count else math.nan for total, count in zip(sums, counts)] if responses else []
