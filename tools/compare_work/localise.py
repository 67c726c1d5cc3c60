"""How well process reward and advantage tell the digits that are right, from a run's samples.jsonl."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.metrics.jsonl import read_jsonl
from tools.compare_work.record import Localisation
from tools.compare_work.truth import at_answers, centred, right_lines


def localisation(samples: Path, model: str) -> Localisation:
    """Of every response that was trained on and written; model: the folder with the tokenizer."""
    tokenizer = load_tokenizer(model)
    siblings: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in read_jsonl(samples):
        if row["kind"] == "trained":
            siblings[row["step"], row["draw"]].append(row)
    if not siblings:
        return Localisation(None, None, None, None)
    parts = [_of_group(rows, tokenizer) for rows in siblings.values()]
    right, truth, starred, reward, advantage = (np.concatenate(column) for column in zip(*parts, strict=True))
    rewarded = bool(np.any(reward != 0.0))
    return Localisation(
        reward_auc=auc(reward, right) if rewarded else None,
        reward_cosine=cosine(reward, truth) if rewarded else None,
        advantage_cosine=cosine(advantage, truth),
        starred_cosine=cosine(advantage, np.where(starred, truth, 0.0)),
    )


def _of_group(rows: list[dict[str, Any]], tokenizer: Tokenizer) -> tuple[np.ndarray, ...]:
    """right, truth, starred, process reward and advantage of each digit that a prompt's responses have."""
    text = rows[0]["ground_truth"]
    truth_ids = tokenizer.encode(text)
    right_KL = np.array([right_lines(row["token_ids"], truth_ids) for row in rows])
    starred_L = np.array([line.startswith("*") for line in text.strip("\n").split("\n")])
    reward_KL, advantage_KL = (
        np.array([at_answers(row[name], starred_L.size) for row in rows]) for name in ("process_rewards", "advantages")
    )
    there_KL = ~np.isnan(advantage_KL)
    starred_KL = np.broadcast_to(starred_L, right_KL.shape)
    columns = (right_KL, centred(right_KL.astype(float)), starred_KL, reward_KL, advantage_KL)
    return tuple(column[there_KL] for column in columns)


def auc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive has a higher score than a negative, ties counted half; None without either."""
    count = int(positive.sum())
    others = positive.size - count
    if count == 0 or others == 0:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    """Of two vectors; None where one of them is zero."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0.0 else None
