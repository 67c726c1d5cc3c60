"""Data, generation, verification and filtering."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from prime_megatron.config.base import Free, Seconds, Section
from prime_megatron.config.code import CodeConfig
from prime_megatron.config.paths import UserPath

TemplateArgument = bool | int | float | str | None
"""A value that a chat template reads."""


class ChatSection(Section):
    """How chats become the text that the model reads."""

    template_kwargs: dict[str, TemplateArgument] = Field(default={})
    """More arguments of the model's chat template, such as {enable_thinking: false}; one that it does not read is an
    error."""
    control_tokens: Literal["text", "refuse"] = "text"
    """A control token (<|im_start|>) in the text of a system, user or tool message. text: encoded as the text it is,
    never as the token; refuse: end with its file and row."""

    def template_options(self) -> tuple[dict[str, TemplateArgument], Literal["text", "refuse"]]:
        """What rendering a chat depends on: the arguments, and what control tokens in a text are."""
        return self.template_kwargs, self.control_tokens


class TeachingConfig(Section):
    """How data.draw teaching chooses prompts: in proportion to p (1 - p), p a prompt's past accuracy."""

    floor: float = Field(default=0.05, gt=0.0, le=0.25)
    """Least weight of a prompt, beside p (1 - p), which is at most 0.25."""
    memory: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Weight of the earlier accuracy when a prompt is answered again: p = memory p + (1 - memory) mean outcome."""
    rest_steps: NonNegativeInt = 0
    """A prompt whose last responses were all right, or all wrong, is not drawn for so many steps."""


class DataConfig(ChatSection):
    """Prompts in the Eurus-2-RL schema: JSONL or parquet, packed by gzip or not."""

    train: tuple[UserPath, ...] = Field(min_length=1)
    """Files with the training prompts, folders of such files, or patterns ("data/*.jsonl.gz")."""
    eval: Free[tuple[UserPath, ...]] = Field(default=())
    """The same for the held-out prompts."""
    max_prompt_tokens: PositiveInt = 1024
    """Longer prompts are skipped and counted."""
    system_prompt: str | None = None
    """Prepended as a system message when the row has none."""
    shuffle: bool = True
    """Shuffle every epoch, seeded by run.seed."""
    draw: Literal["epochs", "teaching"] = "epochs"
    """epochs: every prompt once an epoch; teaching: by how much a prompt teaches (data.teaching), as its own responses
    have shown; before them its row's `difficulty` says it, and a prompt of which nothing is known counts as p = 0.5."""
    teaching: TeachingConfig = TeachingConfig()
    """Of draw teaching."""
    bad_truth: Literal["refuse", "skip"] = "refuse"
    """A row whose ground truth cannot be scored (code: broken JSON, no tests, unequal counts; math: blank, nan, words
    in place of an answer, a value that is not equal to itself; exact: blank): end, naming the first such rows, or skip
    them and count them."""
    skip_abilities: tuple[str, ...] = Field(default=())
    """Rows of these abilities are left out and counted: [code] for a run without programs."""


class SamplingConfig(Section):
    """How a response is drawn."""

    temperature: PositiveFloat = 1.0
    """Divides the logits; applied to the policy's training log-probs too, never to PRM and reference."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus; below 1 the engine's log-probs no longer match the trainer's."""
    max_response_tokens: PositiveInt = 3072
    """A response is cut here."""


class FilterConfig(Section):
    """Which prompts teach (paper, section 3.3)."""

    lower: Free[float] = Field(default=0.2, ge=0.0, le=1.0)
    """Keep a prompt when lower <= mean outcome, inclusive."""
    upper: Free[float] = Field(default=0.8, ge=0.0, le=1.0)
    """Keep a prompt when mean outcome <= upper, inclusive."""
    drop_truncated: Free[bool] = False
    """Drop a group with a response that was cut at the length limit."""
    max_rounds: Free[PositiveInt] = 8
    """Generation rounds of one step before it is starved."""
    on_starved: Free[Literal["stop", "smaller_batch"]] = "stop"
    """What becomes of a starved step. stop: the run saves what it has learned, says why, and ends with exit code 86.
    smaller_batch: it learns from the prompts that passed (rollout/missing counts the others); none at all is a stop."""
    max_age: NonNegativeInt = 1
    """Steps that a surplus group may wait before it is dropped and counted; 0: surplus is dropped at once."""


EngineArgument = bool | int | float | str | list[str] | None
"""A value of an engine's own constructor."""


class VllmConfig(Section):
    """Settings of the vLLM engine."""

    in_process: bool = False
    """Run vLLM in the trainer's own processes (its external launcher) in place of processes of its own: weights are
    written straight into its parameters on every device, but an engine that dies takes the run with it."""
    memory_fraction: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the whole device's memory that the engine takes while it generates: weights, KV cache and, with vLLM,
    its activations (GPU)."""
    cpu_cache_bytes: PositiveInt = 2**30
    """KV cache of one replica (CPU)."""
    extra: dict[str, EngineArgument] = Field(default={})
    """More arguments of vllm.LLM, by their Python names; they win over ours."""


class SglangConfig(Section):
    """Settings of the SGLang engine."""

    memory_fraction: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the whole device's memory that the engine takes while it generates: weights and KV cache (GPU). SGLang
    itself counts in what is free when it starts; it is told the share of that which makes the same bytes."""
    cpu_cache_bytes: PositiveInt = 2**30
    """KV cache of one replica (CPU)."""
    server: bool = False
    """Run SGLang's HTTP server, on loopback and with a key of this run, in place of its in-process engine."""
    extra: dict[str, EngineArgument] = Field(default={})
    """More of SGLang's server arguments, by their Python names; they win over ours."""


class RolloutConfig(Section):
    """Generation: prompts, samples, engine."""

    engine: Free[Literal["embedded", "sglang", "vllm", "replay"]] = "sglang"
    """Who generates; replay reads a recording made with rollout.record."""
    prompts_per_step: PositiveInt = 256
    """Groups in a batch."""
    samples_per_prompt: PositiveInt = 4
    """K, responses per prompt."""
    oversample: float = Field(default=1.0, ge=1.0)
    """Prompts of the first round over prompts_per_step; later rounds ask for what the pass rate predicts."""
    sampling: SamplingConfig = SamplingConfig()
    """How a response is drawn."""
    filter: FilterConfig = FilterConfig()
    """Which prompts teach."""
    tensor: Free[PositiveInt] = 1
    """Tensor-parallel size of one engine replica."""
    expert: Free[PositiveInt] = 1
    """Expert-parallel size of one SGLang replica, within its tensor-parallel ranks: each of them has 1/expert of a
    layer's experts, split over tensor / expert ranks."""
    max_concurrent: Free[PositiveInt] = 256
    """Sequences that one replica decodes together."""
    dtype: Free[Literal["float32", "bfloat16"] | None] = None
    """The engine's compute dtype; none: models.dtype."""
    transport: Free[Literal["auto", "live", "bucket", "broadcast", "disk"]] = "auto"
    """How weights reach an SGLang or vLLM engine. live: written in place into its parameters (CPU); bucket: whole
    tensors through two shared buffers (CUDA IPC on GPUs); broadcast: over a process group; disk: as a folder, which is
    one whole copy per replica. auto: live on a CPU, bucket on GPUs."""
    bucket_bytes: Free[PositiveInt] = 256 * 2**20
    """Largest bucket of a weight sync. What travels between the trainer's ranks is cut to fit; a larger tensor that an
    engine takes whole (bucket, broadcast, disk) goes alone."""
    check_every: Free[NonNegativeInt] = 1
    """Compare a checksum of the engine's weights with the trainer's every n syncs; 0: never."""
    logprob_alarm: Free[PositiveFloat | None] = None
    """Largest mean |engine - trainer| log-prob difference: before the first update a larger one ends the run, later it
    is a warning. none: 1e-3 in float32; in bfloat16 three times what rounding explains, measured in the first step of
    every attempt."""
    max_restarts: Free[NonNegativeInt] = 2
    """Restarts of a dead or hung engine before the run stops."""
    start_timeout_s: Free[Seconds] = 600.0
    """Longest wait for an engine to load, or to take an update."""
    alive_timeout_s: Free[Seconds] = 120.0
    """A generating engine that makes no step for this long hangs and is restarted."""
    generate_timeout_s: Free[Seconds] = 3600.0
    """Longest wait for one round of generation."""
    record: Free[UserPath | None] = None
    """Write the collected groups of every step to this file, for replay."""
    replay: UserPath | None = None
    """A recording to read (engine=replay)."""
    vllm: Free[VllmConfig] = VllmConfig()
    """Settings of the vLLM engine."""
    sglang: Free[SglangConfig] = SglangConfig()
    """Settings of the SGLang engine."""


class VerifyConfig(Section):
    """Outcome rewards."""

    workers: Free[PositiveInt] = 2
    """Processes per node that grade answers which need symbolic mathematics, and as many that run programs."""
    timeout_s: Free[Seconds] = 5.0
    """Wall limit of one answer; past it the outcome is 0 and counted."""
    action_form: Free[bool] = False
    """Count the responses that keep the form of named actions (docs/curate.md) as rollout/action_form; no outcome
    depends on it."""
    code: CodeConfig = CodeConfig()
    """How generated programs are run and scored."""
    custom: dict[str, str] = Field(default={})
    """Rewards of one's own, `ability: package.module:function`, each for the rows of its ability; see
    prime_megatron/verify/custom.py. One that names a built-in ability (math, exact) takes its place."""


class EvalConfig(Section):
    """Held-out evaluation."""

    every: NonNegativeInt = 0
    """Steps between evaluations; 0: only before the first and after the last step."""
    suite: UserPath | None = None
    """Evaluate on a suite, too: a YAML file, or one of the package's (docs/evaluation.md)."""
    suite_data: UserPath | None = None
    """Folder of the suite's files; none: the YAML file's own."""
    suite_mode: Literal["published", "fixed"] = "fixed"
    """Which of the suite's wordings and limits."""
    samples_per_prompt: NonNegativeInt = 0
    """Samples per prompt of data.eval for pass@k, beside the greedy answer; 0: greedy only."""
    max_prompts: PositiveInt | None = None
    """Evaluate on the first n prompts of data.eval; none: all."""
    prm_rows: tuple[UserPath, ...] = Field(default=())
    """Files with labelled responses (docs/prm.md) on which the PRM's accuracy is measured; not read without a PRM."""
    prm_every: NonNegativeInt = 0
    """Steps between measurements on eval.prm_rows, after the step's update of the PRM; 0: after the last step only."""
