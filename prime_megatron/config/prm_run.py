"""Configs of the implicit PRM alone: training it on labelled responses, and scoring with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from prime_megatron.config.algorithm import PrmObjective
from prime_megatron.config.base import Free
from prime_megatron.config.model import LayoutConfig, OptimizerConfig, PackingConfig, ParallelConfig
from prime_megatron.config.paths import UserPath
from prime_megatron.config.rollout import ChatSection
from prime_megatron.config.run import RowsData, StageConfig


class PrmData(RowsData):
    """Labelled responses, JSON lines: `prompt`, `response` and `outcome` (0 to 1), as `generate` writes them; rows of
    one prompt are siblings."""

    train: tuple[UserPath, ...] = Field(min_length=1)
    """Files with the labelled responses to learn from."""
    held_out: Free[tuple[UserPath, ...]] = Field(default=())
    """Files with the labelled responses that the PRM is measured on."""
    group_size: PositiveInt = 8
    """Most responses of one prompt that a step sees as siblings; a prompt with more makes several groups."""


class PrmConfig(StageConfig):
    """The implicit PRM alone: `prime-megatron prm CONFIG.yaml`. A resumed run may change what is marked `Free`."""

    reference: UserPath | None = None
    """HF folder of the frozen reference, the denominator of the reward; none: the model's initial weights."""
    data: PrmData
    """Labelled responses."""
    batch_size: PositiveInt = 64
    """Groups of siblings per optimizer step over all ranks."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-6, clip_grad=10.0)
    """Its optimizer."""
    prm: PrmObjective
    """What it learns. This section tells the config from a supervised one: it must be there, `prm: {}` at least."""
    eval_every: Free[NonNegativeInt] = 0
    """Steps between measurements on data.held_out; 0: before the first step and after the last one only."""


class ScoreConfig(ChatSection):
    """How `prime-megatron score` and `process-bench` run a model: keys on their command line."""

    reference: UserPath | None = None
    """HF folder of the reference; none: the one that the PRM's folder names."""
    beta: PositiveFloat | None = None
    """Reward coefficient; none: the one that the PRM's folder names."""
    step_delimiter: str = Field(default="\n\n", min_length=1)
    """Text that ends a reasoning step: a token that contains it closes the step."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype."""
    trust_remote_code: bool = False
    """Let transformers run code from the model folder (tokenizer and config only)."""
    max_tokens: PositiveInt = 8192
    """A longer row, prompt and response together, is refused."""
    batch_size: PositiveInt = 256
    """Responses that are scored at once over all ranks."""
    parallel: LayoutConfig = LayoutConfig()
    """Layout."""
    packing: PackingConfig = PackingConfig(max_tokens=16384)
    """Micro-batches."""
    processes: int = Field(default=1, ge=1, le=1024)
    """Processes to start on this machine; under torchrun they are there already."""

    def roles_parallel(self) -> ParallelConfig:
        """The layout as roles take it; nothing of training matters to them here."""
        layout = self.parallel
        return ParallelConfig(
            tensor=layout.tensor,
            pipeline=layout.pipeline,
            virtual_pipeline=layout.virtual_pipeline,
            pipeline_layers=layout.pipeline_layers,
            context=layout.context,
            expert=layout.expert,
            expert_tensor=layout.expert_tensor,
            sequence=layout.sequence,
            timeout_s=layout.timeout_s,
        )
