"""Which implementation turns rewards into advantages: decided once, from the config alone."""

from __future__ import annotations

from importlib.util import find_spec

from prime_megatron.config.algorithm import Estimator, Granularity, KlPlace
from prime_megatron.config.layout import Backend
from prime_megatron.config.roles import needs_prm
from prime_megatron.config.run import TrainConfig
from prime_megatron.errors import InputError

FUSED_ESTIMATORS = (Estimator.rloo, Estimator.grpo, Estimator.reinforce, Estimator.reinforce_pp)


def uncovered(config: TrainConfig) -> str | None:
    """The setting that the fused reward path (``kernels.reward``) does not have; None: it has them all."""
    advantage, prm = config.advantage, config.prm
    if advantage.estimator not in FUSED_ESTIMATORS:
        return f"advantage.estimator {advantage.estimator}"
    if config.policy.kl_place is KlPlace.reward:
        return "policy.kl_place reward"
    if not needs_prm(config):
        return None  # there are no process rewards to form
    if prm.granularity is not Granularity.token:
        return f"prm.granularity {prm.granularity}"
    if prm.smoothing_lambda > 0:
        return f"prm.smoothing_lambda {prm.smoothing_lambda}"
    return "prm.use_gt" if prm.use_gt else None


def is_fused(config: TrainConfig) -> bool:
    """Whether the run's advantages come from the fused reward path; else from the definition in ``algo``."""
    return config.advantage.impl != "naive" and uncovered(config) is None


def describe_reward_path(config: TrainConfig) -> str:
    """The decision in one line, for plan-step and the start of a run."""
    if is_fused(config):
        where = {"auto": "Triton on a GPU, torch on a CPU", "triton": "Triton", "torch": "torch"}
        return f"advantages: fused reward path ({where[config.advantage.impl]})"
    reason = uncovered(config)
    why = "advantage.impl naive" if reason is None else f"the fused reward path does not have {reason}"
    return f"advantages: the definition, not fused ({why})"


def check_reward_path(config: TrainConfig, backend: Backend | None) -> None:
    """Refuse an implementation that was asked for and cannot serve.

    Raises:
        InputError: the fused path does not have a setting, or Triton's would have to run on a CPU or is not there.
    """
    impl, reason = config.advantage.impl, uncovered(config)
    if impl in ("triton", "torch") and reason is not None:
        raise InputError(
            f"advantage.impl: {impl} is the fused reward path, which does not have {reason}; set impl to auto or naive"
        )
    if impl == "triton" and backend == "gloo":
        raise InputError("advantage.impl: triton needs a GPU, and this machine has none; set it to auto or torch")
    if impl == "triton" and find_spec("triton") is None:
        raise InputError("advantage.impl: triton is not installed here; install it, or set the key to auto or torch")
