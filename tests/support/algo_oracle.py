"""Random batches and the algorithm's formulas in plain numpy loops over padded arrays, derived from the paper's text.

Nothing here calls the package's algorithms; a batch is only packed into its types.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from prime_megatron.types import RolloutBatch


@dataclass(frozen=True)
class Case:
    """N sequences, responses padded to R; arrays [N, R] hold response tokens only."""

    group: np.ndarray
    prompt_len: np.ndarray
    length: np.ndarray
    outcome: np.ndarray
    prm: np.ndarray
    ref: np.ndarray
    values: np.ndarray
    kl: np.ndarray
    step_end: np.ndarray

    @property
    def n(self) -> int:
        return len(self.group)

    def siblings(self, i: int) -> list[int]:
        return [j for j in range(self.n) if self.group[j] == self.group[i]]

    def batch(self) -> RolloutBatch:
        total = self.prompt_len + self.length
        num_tokens = int(total.sum())
        mask = [bool(t >= p) for p, n in zip(self.prompt_len, total) for t in range(n)]
        ends = self.pack(self.step_end.astype(float)).bool() if self.n else torch.zeros(0, dtype=torch.bool)
        return RolloutBatch(
            tokens_T=torch.zeros(num_tokens, dtype=torch.int64),
            cu_seqlens=torch.tensor([0, *np.cumsum(total).tolist()], dtype=torch.int64),
            response_mask_T=torch.tensor(mask, dtype=torch.bool),
            group_N=torch.tensor(self.group.tolist(), dtype=torch.int64),
            outcome_N=torch.tensor(self.outcome.tolist(), dtype=torch.float32),
            truncated_N=torch.zeros(self.n, dtype=torch.bool),
            version_N=torch.zeros(self.n, dtype=torch.int64),
            engine_logprobs_T=torch.zeros(num_tokens),
            step_end_T=ends,
            num_tokens=int(self.length.sum()),
            num_sequences=self.n,
        )

    def pack(self, padded: np.ndarray, prompt: float = 7.0) -> torch.Tensor:
        """[N, R] -> float64 [T]; prompt tokens get a value that must not matter."""
        rows = [[prompt] * int(p) + padded[i, : self.length[i]].tolist() for i, p in enumerate(self.prompt_len)]
        return torch.tensor([x for row in rows for x in row], dtype=torch.float64)

    def unpack(self, packed: torch.Tensor) -> np.ndarray:
        """[T] -> [N, R], padded with 0; checks that prompt tokens are 0."""
        out, at, flat = np.zeros_like(self.prm), 0, packed.detach().double().numpy()
        for i in range(self.n):
            assert not flat[at : at + self.prompt_len[i]].any(), "a prompt token has a value"
            at += self.prompt_len[i]
            out[i, : self.length[i]] = flat[at : at + self.length[i]]
            at += self.length[i]
        return out

    def part(self, groups: list[int]) -> Case:
        """The sequences of these groups, groups renumbered from 0."""
        keep = [i for i in range(self.n) if self.group[i] in groups]
        number = {g: k for k, g in enumerate(groups)}
        group = np.array([number[self.group[i]] for i in keep], dtype=np.int64)
        rest = {name: getattr(self, name)[keep] for name in self.__dataclass_fields__ if name != "group"}
        return Case(group=group, **rest)


def make_case(seed: int, sizes: list[int], longest: int, binary: bool = True, scale: float = 1.0) -> Case:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    length = rng.integers(1, longest + 1, n)
    outcome = rng.integers(0, 2, n) if binary else rng.integers(0, 9, n) / 8.0

    def noise() -> np.ndarray:
        return scale * rng.normal(size=(n, longest))

    return Case(
        group=np.repeat(np.arange(len(sizes)), sizes),
        prompt_len=rng.integers(1, 5, n),
        length=length,
        outcome=outcome.astype(np.float64),
        prm=noise() - 1.0,
        ref=noise() - 1.0,
        values=noise(),
        kl=0.1 * noise(),
        step_end=rng.random((n, longest)) < 0.3,
    )


@st.composite
def cases(draw: st.DrawFn, binary: bool | None = None, min_size: int = 1) -> Case:
    sizes = draw(st.lists(st.integers(min_size, 5), min_size=1, max_size=4))
    flag = draw(st.booleans()) if binary is None else binary
    return make_case(draw(st.integers(0, 2**31)), sizes, draw(st.integers(1, 17)), flag)


def process_rewards(
    case: Case,
    beta: float,
    scale_by_beta: bool,
    use_gt: bool,
    lam: float,
    granularity: str,
    norm: bool,
    floor: float = 0.0,
    softmin: float | None = None,
) -> np.ndarray:
    rewards = np.zeros_like(case.prm)
    for i in range(case.n):
        last = case.length[i] - 1
        q = [math.log((math.exp(case.prm[i, t]) + floor) / (math.exp(case.ref[i, t]) + floor)) for t in range(last + 1)]
        if scale_by_beta:
            q = [beta * x for x in q]
        if use_gt:
            q[last] = case.outcome[i] - sum(q[:last])
        r = list(q)
        for t in range(last - 1, -1, -1):
            r[t] = q[t] + lam * r[t + 1]
        if granularity == "token":
            rewards[i, : last + 1] = r
        elif granularity == "whole":
            rewards[i, last] = sum(r)
        else:
            open_sum = 0.0
            for t in range(last + 1):
                open_sum += r[t]
                if case.step_end[i, t] or t == last:
                    rewards[i, t], open_sum = open_sum, 0.0
    if softmin is not None:
        for i in range(case.n):
            steps = carriers(case, granularity, i)
            powers = [math.exp(-(rewards[i, t] - rewards[i, steps].min()) / softmin) for t in steps]
            for t, power in zip(steps, powers):
                rewards[i, t] *= power / sum(powers)
    if norm:
        largest = 0.0
        for i in range(case.n):
            for t in range(case.length[i]):
                largest = max(largest, abs(sum(rewards[i, t : case.length[i]])))
        rewards = rewards / (largest + 1e-6)
    return rewards


def prefix_value_loss(case: Case, i: int, q: np.ndarray, beta: float, margin: float, boundary: float) -> float:
    """IPVRM's loss of response i from log-ratios [N, R]: the mean over its prefixes of softplus(m - s * beta * v) with
    m = margin - s * boundary; a fractional outcome o is right o times of 1."""
    total = 0.0
    for t in range(case.length[i]):
        value = sum(q[i, : t + 1]) / (t + 1)
        for sign, share in ((1.0, case.outcome[i]), (-1.0, 1.0 - case.outcome[i])):
            total += share * np.logaddexp(0.0, margin - sign * boundary - sign * beta * value)
    return total / case.length[i]


def difficulty_boundaries(case: Case) -> list[float]:
    """logit of each sequence's group's mean outcome."""
    means = [float(np.mean([case.outcome[j] for j in case.siblings(i)])) for i in range(case.n)]
    held = [min(max(mean, 1e-6), 1 - 1e-6) for mean in means]
    return [math.log(mean / (1 - mean)) for mean in held]


def difficulty_weights(case: Case) -> list[float]:
    """The share of the other outcome among the siblings, over its mean in the group."""
    out = []
    for i in range(case.n):
        group = [case.outcome[j] for j in case.siblings(i)]
        mean = sum(group) / len(group)
        raw = [o * (1 - mean) + (1 - o) * mean for o in group]
        own = case.outcome[i] * (1 - mean) + (1 - case.outcome[i]) * mean
        out.append(own / (sum(raw) / len(raw)) if sum(raw) > 1e-8 else 1.0)
    return out


def carriers(case: Case, granularity: str, i: int) -> list[int]:
    last = int(case.length[i]) - 1
    if granularity == "token":
        return list(range(last + 1))
    if granularity == "whole":
        return [last]
    return [t for t in range(last + 1) if case.step_end[i, t] or t == last]


def leave_one_out(case: Case, rewards: np.ndarray, where: list[list[int]], form: str) -> np.ndarray:
    out = np.zeros_like(rewards)
    mean = [sum(rewards[i, t] for t in where[i]) / len(where[i]) for i in range(case.n)]
    for i in range(case.n):
        siblings = case.siblings(i)
        k = len(siblings)
        for t in where[i]:
            if k == 1:
                out[i, t] = rewards[i, t]
            elif form == "paper":
                out[i, t] = rewards[i, t] - sum(mean[j] for j in siblings if j != i) / (k - 1)
            else:
                out[i, t] = k / (k - 1) * rewards[i, t] - sum(mean[j] for j in siblings) / (k - 1)
    return out


def discounted(case: Case, rewards: np.ndarray, gamma: float) -> np.ndarray:
    out = np.zeros_like(rewards)
    for i in range(case.n):
        for t in range(case.length[i]):
            out[i, t] = sum(gamma ** (s - t) * rewards[i, s] for s in range(t, case.length[i]))
    return out


def at_last(case: Case, values: list[float]) -> np.ndarray:
    out = np.zeros_like(case.prm)
    for i in range(case.n):
        out[i, case.length[i] - 1] = values[i]
    return out


def z_scores(case: Case, values: list[float]) -> list[tuple[float, float]]:
    """(mean, deviation + 1e-6) of each sequence's group; (0, 1) for a group of one."""
    out = []
    for i in range(case.n):
        group = [values[j] for j in case.siblings(i)]
        if len(group) == 1:
            out.append((0.0, 1.0))
            continue
        mean = sum(group) / len(group)
        out.append((mean, math.sqrt(sum((x - mean) ** 2 for x in group) / (len(group) - 1)) + 1e-6))
    return out


def whiten(case: Case, values: np.ndarray) -> np.ndarray:
    flat = [values[i, t] for i in range(case.n) for t in range(case.length[i])]
    mean = sum(flat) / len(flat)
    var = sum((x - mean) ** 2 for x in flat) / (len(flat) - 1) if len(flat) > 1 else 0.0
    out = np.zeros_like(values)
    for i in range(case.n):
        for t in range(case.length[i]):
            out[i, t] = (values[i, t] - mean) / math.sqrt(var + 1e-8)
    return out


def returns(case: Case, rewards: np.ndarray, o: dict[str, Any]) -> np.ndarray:
    """Returns before whitening of every estimator but gae; o: estimator, form, w_p, w_o, g_p, g_o, lam, granularity,
    beta, kl (bool)."""
    where = [carriers(case, o["granularity"], i) for i in range(case.n)]
    everywhere = [list(range(case.length[i])) for i in range(case.n)]
    kl = case.kl if o["kl"] else np.zeros_like(case.kl)
    outcome = case.outcome.tolist()
    if o["estimator"] == "rloo":
        process = leave_one_out(case, rewards, where, o["form"])
        kl = leave_one_out(case, kl, everywhere, o["form"])
        baseline = []
        for i in range(case.n):
            others = [outcome[j] for j in case.siblings(i) if j != i]
            baseline.append(sum(others) / len(others) if others else 0.0)
        outcome = [x - b for x, b in zip(outcome, baseline)]
    elif o["estimator"] == "grpo":
        means = [sum(rewards[i, t] for t in where[i]) / len(where[i]) for i in range(case.n)]
        process = np.zeros_like(rewards)
        for i, (mean, std) in enumerate(z_scores(case, means)):
            for t in where[i]:
                process[i, t] = (rewards[i, t] - mean) / std
        outcome = [(outcome[i] - mean) / std for i, (mean, std) in enumerate(z_scores(case, outcome))]
    elif o["estimator"] in ("prime_value", "prefix_td", "spro"):
        process = np.zeros_like(rewards)
        if o["estimator"] != "prime_value":
            outcome = [(outcome[i] - mean) / std for i, (mean, std) in enumerate(z_scores(case, outcome))]
    else:
        process = rewards
    total = discounted(case, o["w_p"] * process - kl, o["g_p"])
    total = total + discounted(case, at_last(case, [o["w_o"] * x for x in outcome]), o["g_o"])
    if o["estimator"] == "prime_value":
        for i in range(case.n):
            for t in range(case.length[i]):
                total[i, t] -= o["w_p"] * o["beta"] * sum(case.prm[i, s] - case.ref[i, s] for s in range(t))
    if o["estimator"] == "prefix_td":
        total = total + o["w_p"] * prefix_td(case, rewards, o["g_p"] * o["lam"])
    if o["estimator"] == "spro":
        total = total + o["w_p"] * masked_step_advantage(case, rewards)
    return total


def prefix_td(case: Case, rewards: np.ndarray, decay: float) -> np.ndarray:
    """Differences of the prefix's value, centred over the batch, in units of the values' deviation, GAE, whitened."""
    tokens = [(i, t) for i in range(case.n) for t in range(case.length[i])]
    gains = {(i, t): 0.0 if t == case.length[i] - 1 else float(rewards[i, t]) for i, t in tokens}
    values = [sum(gains[i, s] for s in range(t + 1)) for i, t in tokens]
    centre = sum(gains.values()) / len(tokens)
    spread = math.sqrt(sum((v - sum(values) / len(values)) ** 2 for v in values) / len(values))
    out = np.zeros_like(rewards)
    for i in range(case.n):
        following = 0.0
        for t in range(case.length[i] - 1, -1, -1):
            following = (gains[i, t] - centre) / max(spread, 1e-6) + decay * following
            out[i, t] = following
    return whiten(case, out)


def masked_step_advantage(case: Case, rewards: np.ndarray) -> np.ndarray:
    """Reward gained up to a token less the mean of it over the siblings that are as long."""
    out = np.zeros_like(rewards)
    for i in range(case.n):
        for t in range(case.length[i]):
            alive = [sum(rewards[j, : t + 1]) for j in case.siblings(i) if case.length[j] > t]
            out[i, t] = sum(rewards[i, : t + 1]) - sum(alive) / len(alive)
    return out


def gae(case: Case, rewards: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    out = np.zeros_like(rewards)
    for i in range(case.n):
        following = 0.0
        for t in range(case.length[i] - 1, -1, -1):
            after = case.values[i, t + 1] if t + 1 < case.length[i] else 0.0
            following = rewards[i, t] + gamma * after - case.values[i, t] + gamma * lam * following
            out[i, t] = following
    return out


class ThreadReduction:
    """A Reduction over threads that play data-parallel ranks."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.shared: list[torch.Tensor | None] = [None] * size
        self.local = threading.local()

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.shared[self.local.rank] = tensor.clone()
        self.barrier.wait()
        everyone = [t.clone() for t in self.shared if t is not None]
        self.barrier.wait()
        return everyone

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(tensor)).sum(0)

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._all(tensor)).amax(0)


def on_ranks(parts: list[Case], work: Callable[[Case, ThreadReduction], Any]) -> list[Any]:
    """work(part, reduction) on one thread a rank."""
    reduction = ThreadReduction(len(parts))
    results: list[Any] = [None] * len(parts)
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        reduction.local.rank = rank
        try:
            results[rank] = work(parts[rank], reduction)
        except BaseException as error:
            errors.append(error)
            reduction.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Largest difference within tolerance of the expected scale (at least 1)."""
    actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    if actual.size:
        scale = max(1.0, float(np.abs(expected).max()))
        assert np.abs(actual - expected).max() <= tolerance * scale, (actual, expected)
