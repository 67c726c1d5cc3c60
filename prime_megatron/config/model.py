"""Models, optimizers and layout."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from prime_megatron.config.base import Fixed, Free, Seconds, Section
from prime_megatron.config.paths import UserPath

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Type of a moment's decay; at 1 a moment would never leave 0."""


class OptimizerConfig(Section):
    """AdamW, its schedule and the gradient clip of one role."""

    lr: PositiveFloat = 5e-7
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Floor of a decaying schedule."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Shape after the warm-up; cosine ends at min_lr at the last optimizer step of the run."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up."""
    warmup_ratio: float = Field(default=0.0, ge=0.0, lt=1.0)
    """The same as a part of the run's optimizer steps, rounded up; one of both."""
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999))
    """Adam's moment decays."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay (not on biases and norms)."""
    clip_grad: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0: no clipping."""

    def warmup(self, updates: int) -> int:
        """Optimizer steps of warm-up in a run of so many."""
        return self.warmup_steps or math.ceil(self.warmup_ratio * updates - 1e-9)  # 0.07 * 100 is above 7


class TrainedModel(Section):
    """A role that learns."""

    path: UserPath | None = None
    """HF model folder; none: the policy's."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Its optimizer."""
    num_mini_batches: PositiveInt = 1
    """Optimizer steps per batch."""


class Layers(StrEnum):
    """Whose modules a decoder layer is made of."""

    auto = "auto"
    """Transformer Engine's where they import on a GPU and have been run with this release of megatron-core
    (docs/compatibility.md); else ours."""
    te = "te"
    """Transformer Engine's; refused where they do not import."""
    local = "local"
    """Megatron-core's local ones with our norm, attention and linear layers."""


class ModelsConfig(Section):
    """The models of a run, as HF folders."""

    policy: TrainedModel
    """The model that is trained to answer; its folder also gives the tokenizer."""
    prm: TrainedModel = TrainedModel(optimizer=OptimizerConfig(lr=1e-6, clip_grad=10.0))
    """The PRM; may be smaller than the policy, with the same tokenizer."""
    critic: TrainedModel = TrainedModel(optimizer=OptimizerConfig(lr=1e-6))
    """The value model of estimator=gae; not built by the others."""
    reference: UserPath | None = None
    """HF folder of the PRM's frozen reference; none: the PRM's initial weights."""
    teacher: UserPath | None = None
    """HF folder of the teacher (prm.kind teacher), of any size, with the policy's tokenizer; rlsd copies the policy and
    takes none."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype; with bfloat16 the optimizer keeps float32 main weights and gradients."""
    trust_remote_code: Free[bool] = False
    """Let transformers run code from the model folder (tokenizer and config only)."""
    logprob_impl: Free[Literal["auto", "triton", "torch", "naive"]] = "auto"
    """Implementation of the log-prob head."""
    layers: Free[Layers] = Layers.auto
    """Whose layers every model has: te, Transformer Engine's (refused where they do not import); local, ours; auto,
    Transformer Engine's only on a GPU, with versions that docs/compatibility.md lists as run. The start-up log says
    which and why."""


class Offload(StrEnum):
    """What of the models is in host memory, and when."""

    none = "none"
    """Nothing: the models stay on the device while the engine generates."""
    generation = "generation"
    """Every model while the engine starts and generates; in training all are on the device."""
    phases = "phases"
    """The same, and in training every model but the one that works: of that one the weights, and its gradients while it
    learns, are on the device, and of the one that works next the weights, on their way. Adam's moments and float32 main
    weights pass through the device in pieces of 1 GiB during the optimizer's step. A checkpoint is written model by
    model."""


PIECE_BYTES = 2**30
"""With parallel.offload phases, optimizer state on the device at a time, twice: a piece is computed while another
moves. A larger parameter is a piece of its own."""


class LayoutConfig(Section):
    """How every role is laid out over the processes: data = processes / (tensor x pipeline x context)."""

    tensor: PositiveInt = 1
    """Tensor-parallel size."""
    pipeline: PositiveInt = 1
    """Pipeline-parallel size."""
    virtual_pipeline: PositiveInt | None = None
    """Model chunks per pipeline stage (interleaved schedule); none: one."""
    pipeline_layers: tuple[int, ...] | None = Field(default=None)
    """Layers of each stage, for uneven splits; none: as even as possible."""
    context: PositiveInt = 1
    """Context-parallel size (sequences are split among these ranks)."""
    expert: PositiveInt = 1
    """Expert-parallel size (mixture-of-experts models)."""
    expert_tensor: PositiveInt | None = None
    """Tensor-parallel size inside experts; none: 1."""
    sequence: bool = False
    """Megatron's sequence parallelism: norms and residuals split over the tensor-parallel ranks."""
    timeout_s: Seconds = 600.0
    """Longest wait in any collective."""


class ParallelConfig(LayoutConfig):
    """The layout, and what of training goes with it: data = processes / (tensor x pipeline x context)."""

    distributed_optimizer: Fixed[bool] = True
    """Shard optimizer state over the data-parallel ranks. Checkpoints hold the two kinds of state in two forms."""
    overlap_grad_reduce: bool = False
    """Overlap the gradient reduction with the backward."""
    overlap_param_gather: bool = False
    """Overlap the parameter gather with the next forward (distributed optimizer only)."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recomputation in the backward."""


class TrainParallelConfig(ParallelConfig):
    """How every role is laid out over the processes, and where the models are while they do not work."""

    offload: Offload = Offload.none
    """Keep models in pinned host memory: none; generation, while the engine generates; phases, whenever they do not
    work, too, for the smallest device memory. No result depends on it. `prime-megatron validate` says what either takes
    of device and host, and may change on resume."""


class PackingConfig(Section):
    """How sequences become micro-batches; changes speed and memory, never a result."""

    max_tokens: PositiveInt | None = None
    """Tokens of one micro-batch per data-parallel rank; a longer sequence stands alone; none: no limit."""
    max_sequences: PositiveInt | None = None
    """Sequences of one micro-batch; none: no limit."""
    padded: bool = False
    """Pad every sequence of a micro-batch to the longest (for comparison; packing wastes nothing)."""
