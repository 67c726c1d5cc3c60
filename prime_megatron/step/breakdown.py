"""The figures of a step by ability and by data source (see algo.labels).

Names come from groups that every rank has, so that every rank reduces the same sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prime_megatron.algo.filtering import keep_group
from prime_megatron.algo.labels import labels_of, mean_by_label
from prime_megatron.algo.statistics import Statistics, prm_right
from prime_megatron.config import FilterConfig
from prime_megatron.rollout.collect import Collected
from prime_megatron.types import Group


def rollout_figures(collected: Collected, config: FilterConfig) -> dict[str, float]:
    """Outcome and pass rate of the filter by label, and responses by verdict."""
    generated = collected.generated
    outcomes = mean_by_label("rollout/outcome", [(group.prompt, group.mean_outcome) for group in generated])
    kept = mean_by_label("rollout/pass_rate", [(g.prompt, float(keep_group(g, config).kept)) for g in generated])
    return outcomes | kept | {f"rollout/verdict_{kind}": count for kind, count in collected.verdicts.items()}


def prm_sums(q_N: Tensor, outcome_N: Tensor, mine: Sequence[Group], all_groups: Sequence[Group]) -> Statistics:
    """Sums for `prm_figures`: the PRM's right answers and sequences under every label of the whole batch.

    q_N, outcome_N: this rank's, in the order of its groups ``mine``. all_groups: every rank's.
    """
    right_N = prm_right(q_N.detach().double(), outcome_N.double())
    names = [name for group in mine for name in (labels_of(group.prompt),) for _ in group.samples]
    sums: dict[str, Tensor] = {}
    for label in sorted({label for group in all_groups for label in labels_of(group.prompt)}):
        of_label_N = torch.tensor([label in pair for pair in names], dtype=torch.float64, device=right_N.device)
        sums[f"prm_right/{label}"] = (right_N * of_label_N).sum()
        sums[f"prm_count/{label}"] = of_label_N.sum()
    return Statistics(sums)


def prm_figures(reduced: Statistics) -> dict[str, float]:
    """The PRM's accuracy by label; a label without sequences in the batch has none."""
    figures = {}
    for key, right in reduced.sums.items():
        label = key.removeprefix("prm_right/")
        if label != key and float(reduced.sums[f"prm_count/{label}"]):
            figures[f"prm/accuracy/{label}"] = float(right) / float(reduced.sums[f"prm_count/{label}"])
    return figures
