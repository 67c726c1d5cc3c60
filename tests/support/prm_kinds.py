"""Runs with another judge than an implicit PRM: a head, a frozen PRM, a teacher in each of its modes."""

from __future__ import annotations

from typing import Any

HEAD: dict[str, Any] = {"prm": {"kind": "head", "loss": "prefix_ce", "norm": "none"}}
RLSD: dict[str, Any] = {
    "prm": {"kind": "teacher", "teacher": {"mode": "rlsd", "mix_steps": 4, "copy_every": 2}},
    "advantage": {"whiten": False},
}


def kinds(teacher: str) -> dict[str, dict[str, Any]]:
    """Mode -> settings; teacher: another model's folder, with the policy's tokenizer."""

    def taught(**sections: Any) -> dict[str, Any]:
        return {"prm": {"kind": "teacher"}, "models": {"teacher": teacher}, **sections}

    return {
        "head": {**HEAD, "models": {"prm": {"num_mini_batches": 2}}},
        "head-last": {
            "prm": {
                **HEAD["prm"],
                "loss": "last_ce",
                "update": "before",
                "passes": 2,
                "granularity": "step",
                "step_delimiter": "e",
            }
        },
        "frozen": {"prm": {"update": "none"}, "models": {"prm": {"path": teacher}}},
        "teacher": taught(),
        "distillation": taught(advantage={"outcome_weight": 0.0, "process_weight": 0.5}),
        "iw-opd": taught(prm={"kind": "teacher", "teacher": {"mode": "iw_opd", "late_discount": 0.7}}),
        "rlsd": RLSD,
    }
