"""Presets of process rewards after PRIME's, each key with its source; ``presets`` lists them."""

from __future__ import annotations

from typing import Any

IPVRM: dict[str, Any] = {
    # "code": config/distrl_config.yaml and run_grpo_ipvrm.sh, its GRPO + IPVRM. It starts from a PRM that was trained
    # before (models.prm.path; `prime-megatron prm` with the same prm keys); from the policy's own weights it runs, too.
    "prm": {
        "loss": "prefix_value",  # paper; code: loss_type ipvrm
        "beta": 10.0,  # code: beta_train; of a mean over the prefix, not of a sum as PRIME's 0.05
        "margin": 5.0,  # code; 0.5 * beta
        "adaptive_boundary": True,  # paper's ADB; code: use_adb
        "difficulty_weights": True,  # paper's DLW; code: use_dlw
        "update": "before",  # code: RM_UPDATE
        "reference": "freeze",  # code: ref_type
        "granularity": "token",
        "scale_by_beta": True,  # paper: r = beta * q is the difference of two prefix values
        "ratio_floor": 0.0,  # the source has none
        "norm": "none",  # the estimator divides by the values' deviation (code: td_norm value)
    },
    "advantage": {
        "estimator": "prefix_td",  # paper, equation 13
        "outcome_weight": 1.0,  # code: reward_gt_coef
        "process_weight": 0.05,  # code: reward_gae_coef
        "gamma_process": 1.0,  # code: gamma
        "gae_lambda": 1.0,  # code: lam
        "whiten": False,  # the process part is whitened by itself
    },
    "policy": {
        "objective": "dual_clip",  # code: clip_ratio_c
        "dual_clip": 3.0,
        "clip_low": 0.2,  # code: clip_ratio_low, clip_ratio_high
        "clip_high": 0.28,
        "loss_aggregation": "token_mean",
        "entropy_coef": 0.0,  # code: entropy_coeff
        "kl_place": "none",  # code: kl_loss_coef 0
        "kl_coef": 0.0,
    },
    "rollout": {
        "prompts_per_step": 512,  # code: train_batch_size
        "samples_per_prompt": 16,  # code: rollout.n
        "oversample": 2.0,  # code: oversample_factor
        "filter": {"lower": 0.01, "upper": 0.99, "drop_truncated": True},  # code: accuracy bounds, filter_truncate
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_response_tokens": 2048},
    },
    "data": {"max_prompt_tokens": 1024},
    "models": {
        # The rates are the code's, of a policy and a PRM of 0.6B; mini-batches of 128 prompts.
        "policy": {"num_mini_batches": 4, "optimizer": {"lr": 2e-5}},
        "prm": {
            "num_mini_batches": 4,
            "optimizer": {"lr": 2e-6, "schedule": "constant", "weight_decay": 0.0, "clip_grad": 10.0},
        },
    },
}

SPRO: dict[str, Any] = {
    # arXiv 2507.01551; no code of its authors is public, so sizes and rates keep the config's own defaults.
    "prm": {
        "beta": 0.05,  # PRIME's, which it builds on
        "reference": "freeze",  # the policy's start
        "granularity": "token",
        "scale_by_beta": True,
        "norm": "none",
        "ratio_floor": 0.0,
    },
    "advantage": {
        "estimator": "spro",  # outcome compared within the group, plus the masked step advantage
        "process_weight": 1.0,
        "outcome_weight": 1.0,
        "whiten": False,
    },
    "policy": {"entropy_coef": 0.0, "kl_place": "none", "kl_coef": 0.0},
}
