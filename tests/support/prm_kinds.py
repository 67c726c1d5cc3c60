"""Runs with another judge than a learning implicit PRM: a head, a frozen PRM, a teacher in each of its modes."""

from __future__ import annotations

import json
from typing import Any

TEACHER = "TEACHER"
"""Stands for the folder of another model with the policy's tokenizer."""
HEAD: dict[str, Any] = {"prm": {"kind": "head", "loss": "prefix_ce", "norm": "none"}}
TAUGHT: dict[str, Any] = {"prm": {"kind": "teacher"}, "models": {"teacher": TEACHER}}
RLSD: dict[str, Any] = {
    "prm": {
        "kind": "teacher",
        "teacher": {"mode": "rlsd", "mix_steps": 8, "copy_every": 2, "max_truth_tokens": 32, "truth_text": " {truth}"},
    },
    "advantage": {"whiten": False},
}
KINDS: dict[str, dict[str, Any]] = {
    "head": {**HEAD, "models": {"prm": {"num_mini_batches": 2}}},
    "head-last": {
        "prm": {
            **HEAD["prm"], "loss": "last_ce", "update": "before", "passes": 2, "granularity": "step",
            "step_delimiter": "e",
        }
    },
    "frozen": {"prm": {"update": "none", "reference": "policy"}, "models": {"prm": {"path": TEACHER}}},
    "teacher": TAUGHT,
    "distillation": {**TAUGHT, "advantage": {"outcome_weight": 0.0, "process_weight": 0.5}},
    "rlsd": RLSD,
    "iw-opd": {**TAUGHT, "prm": {"kind": "teacher", "teacher": {"mode": "iw_opd", "late_discount": 0.7}}},
}  # fmt: skip


def with_teacher(settings: dict[str, Any], folder: str) -> dict[str, Any]:
    """The settings with this folder for the teacher's."""
    return json.loads(json.dumps(settings).replace(f'"{TEACHER}"', json.dumps(folder)))
