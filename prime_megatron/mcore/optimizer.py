"""Megatron's optimizer for one role, its schedule, and a step that never applies a non-finite gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import nn

from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.mcore.offload import OPTIMIZER, HostCopy
from prime_megatron.mcore.piecewise import step_in_pieces


@dataclass(frozen=True)
class UpdateResult:
    """What one optimizer step did; the same on every rank."""

    applied: bool
    """False: the loss or a gradient was not finite and nothing was changed."""
    grad_norm: float
    """Global gradient norm before clipping."""
    lr: float
    """Learning rate of this step."""


class Optimizer:
    """AdamW over a role's chunks, sharded over data parallelism when asked, with its learning-rate schedule.

    Args:
        chunks: the role's DDP-wrapped model chunks.
        config: learning rate, schedule, clipping.
        parallel: distributed_optimizer and its overlap.
        dtype: compute dtype; with bfloat16 main weights and gradients are float32.
        total_updates: optimizer steps of the whole run, the end of a decaying schedule.
    """

    def __init__(
        self,
        chunks: Sequence[nn.Module],
        config: OptimizerConfig,
        parallel: ParallelConfig,
        dtype: torch.dtype,
        total_updates: int,
    ) -> None:
        self.config = config
        settings = MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            min_lr=config.min_lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            adam_eps=config.eps,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=parallel.distributed_optimizer,
            overlap_param_gather=parallel.overlap_param_gather,
            clip_grad=config.clip_grad,
        )
        self.megatron = get_megatron_optimizer(
            settings, list(chunks), get_standard_config_overrides(settings), use_gloo_process_groups=False
        )
        # The last of N updates runs at the schedule's place N behind a warm-up, and at N - 1 without one.
        warmup = config.warmup(total_updates)
        last = total_updates if warmup else total_updates - 1
        decay_updates = max(last, warmup + 1)
        self.scheduler = OptimizerParamScheduler(
            self.megatron,
            init_lr=0.0,
            max_lr=config.lr,
            min_lr=min(config.min_lr, config.lr),
            # Megatron's first update would run at lr 0: warm up from the first fraction instead.
            lr_warmup_steps=warmup,
            lr_decay_steps=decay_updates,
            lr_decay_style=config.schedule,
            start_wd=config.weight_decay,
            end_wd=config.weight_decay,
            wd_incr_steps=decay_updates,
            wd_incr_style="constant",
        )
        if warmup:
            self.scheduler.step(1)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.megatron.zero_grad()

    @torch.no_grad()
    def step(self, fine: bool = True, memory: HostCopy | None = None) -> UpdateResult:
        """Clip and apply the reduced gradients, unless on any rank ``fine`` is false or their norm is not finite.

        memory: of the role, whose optimizer state comes piece by piece where it is away; None: it is on the device.
        """
        optimizer = self.megatron
        lr = float(optimizer.param_groups[0]["lr"]) if optimizer.param_groups else 0.0
        found_inf = optimizer.prepare_grads()
        grad_norm = float(optimizer.get_grad_norm() or 0.0)
        if not agree(fine and math.isfinite(grad_norm) and not found_inf):
            return UpdateResult(applied=False, grad_norm=grad_norm, lr=lr)
        if self.config.clip_grad > 0.0:
            for part in optimizer.chained_optimizers:
                parameters = [] if part.is_stub_optimizer else part.get_parameters()
                if parameters:
                    clip_grad_by_total_norm_fp32(parameters, max_norm=self.config.clip_grad, total_norm=grad_norm)
        if memory is None or OPTIMIZER in memory.here:
            applied = optimizer.step_with_ready_grads()
        else:
            applied = step_in_pieces(optimizer, memory)
        assert applied, "megatron refused a step whose gradients are finite"
        self.scheduler.step(1)
        return UpdateResult(applied=True, grad_norm=grad_norm, lr=lr)


def agree(fine: bool) -> bool:
    """True when ``fine`` holds on every rank of the world; a collective."""
    from prime_megatron.device import current_device

    verdict = torch.tensor([1.0 if fine else 0.0], device=current_device())
    dist.all_reduce(verdict, op=dist.ReduceOp.MIN)
    return bool(verdict.item() == 1.0)
