"""What is compared: arms, and sixteen trials of settings for each of them.

Every arm has the same policy, data, batch, filter, warm-up and evaluations (examples/starred/prime.yaml), and the same
number of trials: four learning rates of the policy, each with four variants of what else the arm has to choose. Only
what a trial lists differs.
"""

from __future__ import annotations

from dataclasses import dataclass

RATES = (1e-4, 2e-4, 3e-4, 4e-4)
COMMON_RATE = 1e-4
"""At which all arms are compared a second time."""
RATE = "models.policy.optimizer.lr"
SLOW = "models.policy.optimizer.betas=[0.9,0.999]"
"""Adam's own second moment, of a thousand steps."""
TWO = ("models.policy.num_mini_batches=2",)
"""Two optimizer steps a batch."""
WEIGHT_1, WEIGHT_10 = ("advantage.process_weight=1",), ("advantage.process_weight=10",)
FAST = "models.policy.optimizer.betas=[0.9,0.98]"


@dataclass(frozen=True)
class Arm:
    """One method. Its best rate is chosen from its trials by their final sampled accuracy, on a seed that counts for
    nothing else."""

    name: str
    title: str
    table: str
    """In which table of the report it stands."""
    trials: tuple[tuple[str, ...], ...]
    """Overrides of examples/starred/prime.yaml."""
    module: str = "prime_megatron.cli.main"
    """Whose `main` runs it."""

    def at_rate(self, rate: float) -> tuple[tuple[str, ...], ...]:
        """The trials with this learning rate of the policy."""
        return tuple(trial for trial in self.trials if f"{RATE}={rate:g}" in trial)


def _trials(common: tuple[str, ...], *variants: tuple[str, ...], prm: bool = True) -> tuple[tuple[str, ...], ...]:
    """Each variant at each rate; the PRM's rate goes with the policy's where the variant does not set it."""
    made = []
    for rate in RATES:
        for variant in variants:
            own = any(key.startswith("models.prm.optimizer.lr=") for key in variant)
            follows = (f"models.prm.optimizer.lr={3 * rate:g}",) if prm and not own else ()
            made.append((*common, f"{RATE}={rate:g}", *follows, *variant))
    return tuple(made)


SHARP = (
    "models.prm.path=runs/starred_sft_small/model",
    "models.prm.num_mini_batches=2",
    "models.prm.optimizer.lr=0.0005",
    "prm.loss=ce_intercept",
    "prm.passes=2",
)
"""A PRM of half the size that learns from each batch twice, in larger mini-batches, with the siblings' mean outcome as
intercept: cheaper than the preset's, which takes four mini-batches of the policy's own size."""
SMALL = (
    "models.prm.path=runs/starred_sft_small/model",
    "models.prm.optimizer.lr=0.0002",
    "prm.loss=ce_intercept",
)
"""A PRM of half the size with the intercept, at one rate whatever the policy's."""
OWN: tuple[str, ...] = ()
"""The settings of the preset or the file."""
LOCAL = ("preset=local_credit",)
BEFORE = ("models.prm.path=runs/starred_prm/model", "models.reference=runs/starred_sft/model")
"""A PRM that was trained on the policy's first answers."""


def _estimator(name: str) -> tuple[str, ...]:
    return (*LOCAL, f"advantage.estimator={name}")


HEADLINE, OTHERS, ESTIMATORS = "headline", "others", "estimators"
ARMS = (
    Arm(
        "rloo",
        "RLOO, outcome only",
        HEADLINE,
        _trials(
            ("preset=default", "advantage.process_weight=0"), (SLOW,), (FAST,), (SLOW, *TWO), (FAST, *TWO), prm=False
        ),
    ),
    Arm("local_credit", "PRIME, local credit", HEADLINE, _trials(LOCAL, OWN, SHARP, SMALL, (*SHARP, *TWO))),
    Arm(
        "default",
        "PRIME, default",
        HEADLINE,
        _trials(("preset=default", "prm.beta=0.5"), (SLOW,), (FAST,), (FAST, *SMALL), (FAST, *TWO)),
    ),
    Arm(
        "ipvrm",
        "IPVRM",
        HEADLINE,
        _trials(("preset=ipvrm",), OWN, ("advantage.process_weight=0.5",), ("advantage.process_weight=2",), TWO),
    ),
    Arm(
        "truth",
        "true step rewards (ceiling)",
        HEADLINE,
        _trials(
            (*LOCAL, "prm.update=none", "prm.beta=1", "prm.ratio_floor=0"),
            WEIGHT_1,
            OWN,
            WEIGHT_10,
            TWO,
            prm=False,
        ),
        module="tools.compare_work.ceiling",
    ),
    Arm(
        "spro",
        "SPRO (no PRM)",
        OTHERS,
        _trials(("preset=spro",), (SLOW,), (FAST,), (SLOW, *TWO), (FAST, *TWO), prm=False),
    ),
    Arm("head", "explicit head", OTHERS, _trials((*LOCAL, "prm.kind=head"), OWN, WEIGHT_1, WEIGHT_10, TWO)),
    Arm(
        "frozen",
        "frozen PRM, trained before",
        OTHERS,
        _trials(
            (*LOCAL, "prm.update=none", *BEFORE),
            OWN,
            WEIGHT_1,
            WEIGHT_10,
            TWO,
            prm=False,
        ),
    ),
    Arm("grpo", "local credit, grpo", ESTIMATORS, _trials(_estimator("grpo"), OWN, SHARP, SMALL, (*SHARP, *TWO))),
    Arm(
        "reinforce",
        "local credit, reinforce",
        ESTIMATORS,
        _trials(_estimator("reinforce"), OWN, SHARP, SMALL, (*SHARP, *TWO)),
    ),
    Arm(
        "gae",
        "local credit, gae",
        ESTIMATORS,
        # one value function, so one discount: lambda 0 keeps the credit local
        _trials(
            (*_estimator("gae"), "advantage.gamma_process=1", "advantage.gae_lambda=0"),
            OWN,
            SHARP,
            SMALL,
            (*SHARP, *TWO),
        ),
    ),
)
BY_NAME = {arm.name: arm for arm in ARMS}
