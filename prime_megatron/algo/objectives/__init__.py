"""Policy objectives: one file each, by the names of policy.objective, or by a path of the user's own."""

from prime_megatron.algo.objectives.base import Objective, ObjectiveTokens, Surrogate
from prime_megatron.algo.objectives.cispo import cispo
from prime_megatron.algo.objectives.custom import custom_objective
from prime_megatron.algo.objectives.dual_clip import dual_clip
from prime_megatron.algo.objectives.gspo import gspo
from prime_megatron.algo.objectives.ppo import ppo

__all__ = ["OBJECTIVES", "Objective", "ObjectiveTokens", "Surrogate", "objective_named"]

OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("ppo", ppo, whole_sequences=False),
        Objective("dual_clip", dual_clip, whole_sequences=False),
        Objective("gspo", gspo, whole_sequences=True),
        Objective("cispo", cispo, whole_sequences=False),
    )
}


def objective_named(name: str) -> Objective:
    """The objective that policy.objective names. Raises InputError where a path does not lead to one."""
    return OBJECTIVES[name] if name in OBJECTIVES else custom_objective(name)
