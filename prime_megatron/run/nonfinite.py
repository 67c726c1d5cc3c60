"""Updates that were skipped because a loss or a gradient was not finite: counted, shown, and not too many in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from prime_megatron.errors import Diverged, RunError
from prime_megatron.mcore.role import Learning, TrainResult

NONFINITE_FOLDER = "nonfinite"
"""Below run.output_dir: the batches of skipped updates."""


class NonFinite:
    """Counts skipped updates in a row, each role apart. Every rank sees the same results, so all decide alike.

    Args:
        folder: where batches are dumped.
        max_in_a_row: run.max_nonfinite.
        dumps: whether this rank dumps its part of the batch: one rank of each model-parallel block.
        rank: names the file.
        warn: told of every skipped update.
    """

    def __init__(self, folder: Path, max_in_a_row: int, dumps: bool, rank: int, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.max_in_a_row = max_in_a_row
        self.dumps = dumps
        self.rank = rank
        self.warn = warn
        self.in_a_row: dict[str, int] = {}
        """By role; none for one that has not learned yet."""

    def check(self, step: int, results: Mapping[str, TrainResult | Learning], batch: Mapping[str, Any]) -> None:
        """Look at a step's updates, by role. batch: what to dump, named parts with tensors as attributes.

        Raises:
            RunError: a role has skipped too many updates in a row.
        """
        for role, result in results.items():
            self._check(step, role, result, batch)

    def generated(self, step: int) -> None:
        """The policy generated no numbers: the step is dropped, and its update counts as skipped.

        Raises:
            RunError: the policy has skipped too many updates in a row.
        """
        self.in_a_row["policy"] = self.in_a_row.get("policy", 0) + 1
        self.warn(
            f"step {step}: policy: log-probs of its responses are not finite: its weights hold no numbers; the step is "
            f"dropped ({self.in_a_row['policy']} updates in a row)"
        )
        self._end_at(step, "policy", self.in_a_row["policy"], Diverged)

    def state(self) -> dict[str, Any]:
        """The counts."""
        return dict(self.in_a_row)

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.in_a_row = dict(state)

    def _check(self, step: int, role: str, result: TrainResult | Learning, batch: Mapping[str, Any]) -> None:
        skipped = [index for index, update in enumerate(result.updates) if not update.applied]
        worst = self.in_a_row.setdefault(role, 0)
        for update in result.updates:
            self.in_a_row[role] = 0 if update.applied else self.in_a_row[role] + 1
            worst = max(worst, self.in_a_row[role])
        if not skipped:
            return
        where = self._dump(step, role, batch)
        self.warn(
            f"step {step}: {role}: a loss or gradient was not finite in {len(skipped)} of {len(result.updates)} "
            f"updates; they are skipped ({self.in_a_row[role]} in a row), the batch is {where}"
        )
        self._end_at(step, role, worst)

    def _end_at(self, step: int, role: str, num_skipped: int, kind: type[RunError] = RunError) -> None:
        if num_skipped >= self.max_in_a_row:
            raise kind(
                f"step {step}: {role}: {num_skipped} updates in a row were not finite (run.max_nonfinite "
                f"{self.max_in_a_row}); the batches of updates are in {self.folder}"
            )

    def _dump(self, step: int, role: str, batch: Mapping[str, Any]) -> str:
        """Where the batch is. A disk that does not take it ends no run."""
        if self.dumps:
            try:
                self._write(step, role, batch)
            except (OSError, SafetensorError) as error:
                return f"lost ({error})"
        return f"in {self.folder}"

    def _write(self, step: int, role: str, batch: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{prefix}.{name}": value.detach().cpu().contiguous().clone()
            for prefix, part in batch.items()
            for name, value in vars(part).items()
            if isinstance(value, Tensor)
        }
        save_file(tensors, self.folder / f"step-{step:08d}-{role}-rank-{self.rank:05d}.safetensors")
