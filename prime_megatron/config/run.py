"""The whole config of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt
from pydantic_core import PydanticCustomError

from prime_megatron.config.algorithm import AdvantageAlgorithm, PolicyAlgorithm, PrmAlgorithm
from prime_megatron.config.base import Free, Seconds, Section
from prime_megatron.config.model import (
    ModelsConfig,
    OptimizerConfig,
    PackingConfig,
    ParallelConfig,
    TrainParallelConfig,
)
from prime_megatron.config.paths import UserPath
from prime_megatron.config.rollout import ChatSection, DataConfig, EvalConfig, RolloutConfig, VerifyConfig
from prime_megatron.config.sizes import checked_size


class RunSection(Section):
    """The run itself."""

    name: Free[str] = "prime"
    """Names the run in logs."""
    output_dir: Free[UserPath]
    """Everything the run writes; must be empty or absent unless --resume or --overwrite is given."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seeds data order, sampling and initialisation of new parameters."""
    steps: Free[PositiveInt]
    """Training steps (batches). A resumed run may change them unless a learning rate decays to the last one."""
    max_nonfinite: Free[PositiveInt] = 3
    """Stop after this many skipped updates in a row."""
    stall_timeout_s: Free[Seconds] = 1800.0
    """A stage that takes longer has every rank's stack written and ends the run."""


class LaunchConfig(Section):
    """Processes that `prime-megatron train` and `sft` start by themselves when no launcher did."""

    nodes: int = Field(default=1, ge=1, le=65_536)
    """Nodes of the job."""
    processes_per_node: int = Field(default=1, ge=1, le=1024)
    """Processes (GPUs) of a node."""
    slurm_comment: bool = True
    """In a SLURM job, keep its comment (squeue's %k) at step, time left and last accuracy, at most once a minute."""
    device_memory: Annotated[str, AfterValidator(checked_size)] | None = None
    """Memory of one GPU as the card reports it, such as 79.6GiB; a run that needs more is refused before it starts.
    none: not checked."""
    host_memory: Annotated[str, AfterValidator(checked_size)] | None = None
    """Memory of one node, such as 1500GiB; a run whose models and checkpoints take more of it is refused before it
    starts. none: not checked; what models keep there is held against what is free when the run starts."""


MAX_WINDOW = 50
"""Steps of a trace: one of more is for nobody to look at, and is kept in memory until its end."""


def _window(steps: tuple[int, int]) -> tuple[int, int]:
    first, last = steps
    if not 1 <= first <= last < first + MAX_WINDOW:
        raise PydanticCustomError(
            "window", f"expected the first and the last step, such as [5, 6], at most {MAX_WINDOW} of them"
        )
    return steps


Window = Annotated[tuple[int, int], AfterValidator(_window)]
"""Type of a range of steps, both ends included."""


class LogConfig(Section):
    """Where metrics go; console and metrics.jsonl always."""

    tensorboard: bool = True
    """Write TensorBoard events below the output folder."""
    wandb_project: str | None = None
    """Weights & Biases project; none: off."""
    mlflow_experiment: str | None = None
    """MLflow experiment; none: off."""
    mlflow_uri: str | None = None
    """MLflow's server or store, such as http://host:5000; none: $MLFLOW_TRACKING_URI, or a SQLite file below the output
    folder where that is not set."""
    offline: bool = False
    """Send nothing: W&B keeps what `wandb sync` sends later, MLflow writes a SQLite file, both in the output folder."""
    trace_steps: Window | None = None
    """First and last step of a trace for Perfetto, such as [5, 6]: what every rank does when; none: no trace."""
    trace_detail: Literal["stages", "operators"] = "stages"
    """stages: stages, micro-batches, communication, verification, engine. operators: torch's profiler besides, and on a
    GPU a snapshot of its memory, a file a rank: large and slow."""


class TrainLogConfig(LogConfig):
    """Where metrics and samples go; console and metrics.jsonl always."""

    samples_every: NonNegativeInt = 1
    """Steps between writes of rollouts to samples.jsonl, which has the answers of every evaluation, too; 0: no
    samples.jsonl."""
    samples_per_step: PositiveInt | None = None
    """Responses of the batch written per such step: those of whole prompts, siblings together, until there are so many;
    none: all."""
    rejected_per_step: NonNegativeInt = 8
    """Responses to prompts that the filter dropped, written per such step: one of each prompt."""
    held_out_per_eval: PositiveInt | None = None
    """Held-out answers written per evaluation, and as many of the samples for pass@k, whole prompts; none: all."""


class CheckpointConfig(Section):
    """Saving and stopping."""

    every: NonNegativeInt = 0
    """Steps between checkpoints; 0: only the last step's."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept."""
    keep_every: NonNegativeInt = 0
    """Checkpoints whose step is a multiple of this are kept for good; 0: none."""
    asynchronous: bool = False
    """Write in the background while training goes on."""
    save_final: bool = True
    """Save when the run ends."""
    export_final: bool = True
    """Export policy and PRM as HF folders, each with a model card, when the run ends."""
    signal: Literal["USR1", "USR2"] = "USR1"
    """Signal, besides TERM, that asks for a save and exit code 85; srun hands on no other without ending the run."""
    grace_s: Seconds = 120.0
    """Seconds between the signal and the latest moment to start the save."""
    wall_limit_s: Seconds | None = None
    """Wall-clock seconds of this attempt after which it saves and exits with 85; none: no limit."""


class TrainConfig(Section):
    """A PRIME run: `prime-megatron train CONFIG.yaml [section.key=value ...]`.

    A run that is resumed may change what is marked `Free`: a field here, or every field of a section.
    """

    preset: Free[
        Literal[
            "default", "local_credit", "paper", "original", "recipe", "ipvrm", "spro", "dapo", "drgrpo", "gspo", "cispo"
        ]
    ] = "default"
    """Algorithm settings of a source, below what the file sets itself: see config/presets.py."""
    run: RunSection
    """The run itself."""
    models: ModelsConfig
    """Policy, PRM, reference."""
    data: DataConfig
    """Prompts."""
    rollout: RolloutConfig = RolloutConfig()
    """Generation."""
    verify: VerifyConfig = VerifyConfig()
    """Outcome rewards."""
    prm: PrmAlgorithm = PrmAlgorithm()
    """The implicit PRM's reward and loss."""
    advantage: AdvantageAlgorithm = AdvantageAlgorithm()
    """From rewards to advantages."""
    policy: PolicyAlgorithm = PolicyAlgorithm()
    """The policy's loss."""
    parallel: Free[TrainParallelConfig] = TrainParallelConfig()
    """Layout of every role."""
    packing: Free[PackingConfig] = PackingConfig()
    """Micro-batches."""
    eval: Free[EvalConfig] = EvalConfig()
    """Held-out evaluation."""
    log: Free[TrainLogConfig] = TrainLogConfig()
    """Where metrics go."""
    checkpoint: Free[CheckpointConfig] = CheckpointConfig()
    """Saving and stopping."""
    launch: Free[LaunchConfig] = LaunchConfig()
    """Processes to start."""


class RowsData(ChatSection):
    """Rows to learn, and what is left out of them."""

    train: tuple[UserPath, ...] = Field(min_length=1)
    """Files with the training rows, folders of such files, or patterns ("data/*.jsonl.gz")."""
    max_tokens: PositiveInt = 4096
    """Longer rows are skipped and counted."""


class StageConfig(Section):
    """A run that trains one model on rows: what its kinds (`SftConfig`, `PrmConfig`) share."""

    run: RunSection
    """The run itself; steps counts optimizer steps."""
    model: UserPath
    """HF model folder to start from."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute dtype."""
    trust_remote_code: Free[bool] = False
    """Let transformers run code from the model folder (tokenizer and config only)."""
    data: RowsData
    """Rows."""
    batch_size: PositiveInt
    """Rows per optimizer step over all ranks."""
    optimizer: OptimizerConfig
    """Its optimizer."""
    parallel: Free[ParallelConfig] = ParallelConfig()
    """Layout."""
    packing: Free[PackingConfig] = PackingConfig()
    """Micro-batches."""
    log: Free[LogConfig] = LogConfig()
    """Where metrics go."""
    checkpoint: Free[CheckpointConfig] = CheckpointConfig()
    """Saving and stopping; export_final writes the model to <output_dir>/model."""
    launch: Free[LaunchConfig] = LaunchConfig()
    """Processes to start."""
