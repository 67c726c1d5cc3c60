"""Every knob of a run. A section a class, a docstring a field; `load.py` reads YAML and overrides."""

from prime_megatron.config.algorithm import (
    AdvantageAlgorithm,
    Estimator,
    Granularity,
    ImportanceLevel,
    ImportanceMode,
    KlEstimator,
    KlPlace,
    LeaveOneOut,
    LossAggregation,
    PolicyAlgorithm,
    PrmAlgorithm,
    PrmKind,
    PrmLossKind,
    PrmObjective,
    PrmReference,
    RewardNorm,
    UpdateOrder,
)
from prime_megatron.config.code import CodeConfig
from prime_megatron.config.health import CollapseAction, HealthConfig
from prime_megatron.config.model import (
    ModelsConfig,
    Offload,
    OptimizerConfig,
    PackingConfig,
    ParallelConfig,
    TrainedModel,
)
from prime_megatron.config.prm_run import PrmConfig, PrmData, ScoreConfig
from prime_megatron.config.rollout import (
    DataConfig,
    EvalConfig,
    FilterConfig,
    RolloutConfig,
    SamplingConfig,
    VerifyConfig,
)
from prime_megatron.config.run import (
    CheckpointConfig,
    LaunchConfig,
    LogConfig,
    StageConfig,
    TrainConfig,
    TrainLogConfig,
)
from prime_megatron.config.sft_run import SftConfig
from prime_megatron.config.teacher import TeacherAlgorithm, TeacherMode

__all__ = [
    "AdvantageAlgorithm", "CheckpointConfig", "CodeConfig", "CollapseAction", "DataConfig", "Estimator",
    "EvalConfig", "FilterConfig", "Granularity", "HealthConfig", "ImportanceLevel", "ImportanceMode", "KlEstimator",
    "KlPlace", "LaunchConfig", "LeaveOneOut", "LogConfig", "LossAggregation", "ModelsConfig", "Offload",
    "OptimizerConfig", "PackingConfig", "ParallelConfig", "PolicyAlgorithm", "PrmAlgorithm", "PrmConfig", "PrmData",
    "PrmKind", "PrmLossKind", "PrmObjective", "PrmReference", "RewardNorm", "RolloutConfig", "SamplingConfig",
    "ScoreConfig", "SftConfig", "StageConfig", "TeacherAlgorithm", "TeacherMode", "TrainConfig", "TrainLogConfig",
    "TrainedModel", "UpdateOrder", "VerifyConfig",
]  # fmt: skip
