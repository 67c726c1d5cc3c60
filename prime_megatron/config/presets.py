"""Presets: partial configs, merged below the user's file. Each reproduces a source's algorithm, not its defects.

default and local_credit are ours; paper is arXiv 2502.01456; original is PRIME-RL/PRIME, training/verl; recipe is
verl-project/verl-recipe, prime. ipvrm (arXiv 2604.13197; gaoshiping/IPVRM, step3_distrl) and spro (arXiv 2507.01551)
are other process rewards: docs/process-rewards.md. dapo, drgrpo, gspo and cispo are policy objectives of other papers,
outcomes alone: docs/policy-objectives.md.
Where a source is silent the key is left out and the config's own default holds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from prime_megatron.config.process_presets import IPVRM, SPRO

_SHARED_ALGORITHM: dict[str, Any] = {
    "prm": {
        "beta": 0.05,  # all three
        "loss": "ce",  # paper, equation 4; the original knows no other; the recipe's default
        "reference": "freeze",  # paper; both scripts (the recipe's "policy" does not run)
        "granularity": "token",  # paper; both scripts
        "smoothing_lambda": 0.0,  # paper and original have none; the recipe's default
        "use_gt": False,  # the same
    },
    "advantage": {
        "estimator": "rloo",  # paper; both codes have only this
        "process_weight": 1.0,  # paper; the codes' 5/5 is inert in the original and cancels in the recipe
        "outcome_weight": 1.0,  # the same
        "gamma_process": 1.0,  # both codes' default
        "gamma_outcome": 1.0,  # both codes' default
    },
    "policy": {
        "clip_low": 0.2,  # PPO clip of all three
        "clip_high": 0.2,
        "entropy_coef": 0.0,  # all three
        "kl_place": "none",  # paper and original: coefficient 0; the recipe's RLOO never reads its KL penalty
        "kl_coef": 0.0,
    },
    "rollout": {
        "samples_per_prompt": 4,  # K of all three
        "sampling": {"temperature": 1.0, "top_p": 1.0},  # all three
        "filter": {"lower": 0.2, "upper": 0.8, "drop_truncated": False},  # paper, section 3.3; both scripts
    },
}

_PUBLISHED_SIZES: dict[str, Any] = {
    # 256 prompts x 4 responses in mini-batches of 256 responses: 4 optimizer steps for policy and PRM.
    "rollout": {"prompts_per_step": 256, "sampling": {"max_response_tokens": 3072}},
    "data": {"max_prompt_tokens": 1024},
    "models": {
        "policy": {
            "num_mini_batches": 4,
            "optimizer": {"lr": 5e-7, "schedule": "constant", "weight_decay": 0.0, "clip_grad": 1.0},
        },
        "prm": {
            "num_mini_batches": 4,
            "optimizer": {"lr": 1e-6, "schedule": "constant", "weight_decay": 0.0, "clip_grad": 10.0},
        },
    },
}


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge, later layers over earlier ones; the result shares nothing with its sources."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                merged[key] = _merge(merged[key], value) if key in merged else _merge(value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged


_PAPER: dict[str, Any] = {
    "prm": {
        "update": "after",  # algorithm 1 and the published script: one forward
        "scale_by_beta": True,  # equation 3
        "norm": "none",  # the paper has no norm on process rewards
    },
    "advantage": {
        "leave_one_out": "paper",  # equation 5
        "whiten": False,  # the codes whiten, the paper does not say so
    },
}

_ORIGINAL: dict[str, Any] = {
    "prm": {
        "update": "after",  # the published script; before and none crash there
        "scale_by_beta": False,  # process reward q, not beta * q
        "norm": "batch_norm",  # the published script; its maximum is per rank, ours is global
    },
    "advantage": {
        "leave_one_out": "code",  # K/(K-1) r_t - 1/(K-1) sum_j m_j
        "whiten": True,
    },
    "rollout": {
        "filter": {"max_age": 0},  # surplus responses are thrown away (it keeps their prompts for later)
    },
    "verify": {
        "code": {"score": "original"},  # all tests: 1; else passes over the first ten
    },
}

_RECIPE: dict[str, Any] = {
    "prm": {
        "update": "before",  # its default: update, then score again
        "scale_by_beta": True,  # process reward beta * q
        "norm": "batch_norm",  # its default; its maximum is per rank, ours is global
    },
    "advantage": {
        "leave_one_out": "code",
        "whiten": True,
    },
    "rollout": {
        "prompts_per_step": 64,  # run_prime_qwen.sh
        "oversample": 4.0,  # one round at 4x; what it pads with failing groups, later rounds fill here
        "filter": {"max_age": 0},  # no buffer
        "sampling": {"max_response_tokens": 3072},
    },
    "data": {"max_prompt_tokens": 1024},
    "models": {
        # Learning rates and clip of run_prime_qwen.sh; mini-batches are left to the config's default.
        "policy": {"optimizer": {"lr": 5e-7, "schedule": "constant", "clip_grad": 1.0}},
        "prm": {"optimizer": {"lr": 1e-6, "schedule": "constant", "clip_grad": 10.0}},
    },
}

_DEFAULT: dict[str, Any] = {
    # Ours: the paper's formulas where the codes deviate by accident, the codes' scaling where it makes the result
    # independent of scale. Every statistic is global, so no layout, packing or micro-batch size can change it.
    "prm": {
        "update": "after",  # one PRM forward a step (paper: as good as two)
        "scale_by_beta": True,  # equation 3
        # Bounds the process return by 1 whatever the length of the responses and the state of the PRM, so that it
        # neither vanishes beside the outcome (beta * q is small at the start) nor drowns it later.
        "norm": "batch_norm",
    },
    "advantage": {
        # Equation 5: unbiased like the codes' form, without inflating differences between the tokens of a response
        # by K/(K-1).
        "leave_one_out": "paper",
        # A unit scale of the advantages makes the learning rate portable across tasks and K.
        "whiten": True,
    },
}

_LOCAL_CREDIT: dict[str, Any] = {
    # Ours, for tasks where most of a response does not decide its outcome: docs/process-rewards.md. beta * q_t is the
    # difference of two values, so an advantage already: it is not summed to the end, where the noise of all later
    # tokens would come back, and not normed, so that it starts at 0 and grows with what the PRM has learnt.
    "prm": {
        "beta": 0.5,  # of responses of some 50 tokens; a longer one sums up more of them in the PRM's logit
        "update": "after",
        "scale_by_beta": True,
        "norm": "none",
        "ratio_floor": 0.05,  # bounds the reward of a token that the reference holds impossible
    },
    "advantage": {
        "leave_one_out": "paper",
        "gamma_process": 0.0,
        "process_weight": 3.0,
        "whiten": True,
    },
    "models": {
        # The PRM learns three times as fast as the policy: whoever sets one rate sets the other. The second moment
        # decays sooner, and the rate rises over ten steps: Adam's first step moves every weight by a whole rate.
        "policy": {"optimizer": {"lr": 5e-7, "betas": [0.9, 0.98], "warmup_steps": 10}},
        "prm": {
            "num_mini_batches": 4,
            "optimizer": {"lr": 1.5e-6, "betas": [0.9, 0.98], "warmup_steps": 40, "clip_grad": 10.0},
        },
    },
}

_GROUP_RELATIVE: dict[str, Any] = {
    # What the objectives' papers share: outcomes alone, compared within a prompt's responses; no KL, no entropy bonus.
    "advantage": {"estimator": "grpo", "process_weight": 0.0, "outcome_weight": 1.0, "whiten": False},
    "policy": {"entropy_coef": 0.0, "kl_place": "none", "kl_coef": 0.0},
}

_DAPO: dict[str, Any] = {
    # arXiv 2503.14476, sections 3 and 4.1
    "advantage": {
        "overlong_buffer": 4096,  # soft overlong punishment, equation 13
        "overlong_penalty": 0.5,  # 1 there, of outcomes -1 and 1; ours are 0 and 1
    },
    "policy": {
        "objective": "ppo",
        "clip_low": 0.2,  # clip-higher
        "clip_high": 0.28,
        "loss_aggregation": "token_mean",
    },
    "rollout": {
        "prompts_per_step": 512,
        "samples_per_prompt": 16,
        "filter": {"lower": 0.01, "upper": 0.99},  # dynamic sampling: neither all right nor all wrong
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_response_tokens": 20480},  # 16384 and the buffer
    },
    "models": {
        "policy": {
            "num_mini_batches": 16,  # 512 responses each
            "optimizer": {"lr": 1e-6, "schedule": "constant", "warmup_steps": 320},  # 20 steps of 16 updates
        }
    },
}

_DRGRPO: dict[str, Any] = {
    # arXiv 2503.20783, section 3.2: neither the deviation nor a response's length divides
    "advantage": {"scale_by_deviation": False},
    "policy": {"objective": "ppo", "clip_low": 0.2, "clip_high": 0.2, "loss_aggregation": "constant_length"},
}

_GSPO: dict[str, Any] = {
    # arXiv 2507.18071, equation 5 and section 5.1
    "policy": {
        "objective": "gspo",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "loss_aggregation": "sequence_mean",
    },
    "models": {"policy": {"num_mini_batches": 4}},
}

_CISPO: dict[str, Any] = {
    # arXiv 2506.13585, section 3.1; it does not tell its upper bound
    "policy": {
        "objective": "cispo",
        "clip_low": 1.0,  # none
        "loss_aggregation": "token_mean",
    },
    "models": {"policy": {"num_mini_batches": 16}},
}

PRESETS: Mapping[str, dict[str, Any]] = {
    "default": _merge(_SHARED_ALGORITHM, _DEFAULT),
    "local_credit": _merge(_SHARED_ALGORITHM, _LOCAL_CREDIT),
    "paper": _merge(_SHARED_ALGORITHM, _PUBLISHED_SIZES, _PAPER),
    "original": _merge(_SHARED_ALGORITHM, _PUBLISHED_SIZES, _ORIGINAL),
    "recipe": _merge(_SHARED_ALGORITHM, _RECIPE),
    "ipvrm": _merge(IPVRM),
    "spro": _merge(SPRO),
    "dapo": _merge(_GROUP_RELATIVE, _DAPO),
    "drgrpo": _merge(_GROUP_RELATIVE, _DRGRPO),
    "gspo": _merge(_GROUP_RELATIVE, _GSPO),
    "cispo": _merge(_GROUP_RELATIVE, _CISPO),
}
"""Preset name -> nested partial config in YAML's own types, to merge below the user's file."""
