"""Settings that contradict each other are refused with the reason; odd ones are warned of."""

import json

import pytest
from pydantic import ValidationError

from prime_megatron.config import SftConfig, TrainConfig
from prime_megatron.config.check import check_parallel, check_train_config, needs_prm
from prime_megatron.config.check_stage import check_stage_config
from prime_megatron.config.warn import warn_rare_success
from prime_megatron.errors import InputError
from prime_megatron.run.alarms import Alarms


def train_config(*settings: str) -> TrainConfig:
    """A config that passes, changed by "dotted.key=json"."""
    values = {
        "run": {"output_dir": "o", "steps": 1},
        "models": {"policy": {"path": "m"}},
        "data": {"train": ["a.jsonl"]},
    }
    for setting in settings:
        key, _, value = setting.partition("=")
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = json.loads(value)
    return TrainConfig.model_validate_json(json.dumps(values))


def refusal(*settings: str, world_size: int | None = None, backend=None) -> str:
    with pytest.raises(InputError) as error:
        check_train_config(train_config(*settings), world_size, backend)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_pass_without_warnings():
    assert check_train_config(train_config()) == ()
    assert check_train_config(train_config(), 64, "nccl") == ()


def test_processes_come_from_the_launch_section_when_not_given():
    check_train_config(train_config("parallel.tensor=4", "launch.nodes=2", "launch.processes_per_node=8"))
    message = refusal("parallel.tensor=4", "parallel.pipeline=2", "launch.nodes=3", "launch.processes_per_node=4")
    assert message == (
        "parallel: tensor 4 x pipeline 2 x context 1 = 8 does not divide the 12 processes (12 = 1 x 8 + 4); "
        "change parallel.*, or the number of processes"
    )


def test_too_few_processes_show_the_arithmetic():
    assert "(2 = 0 x 4 + 2)" in refusal("parallel.tensor=2", "parallel.context=2", world_size=2)


def test_data_parallel_size():
    parallel = train_config("parallel.tensor=2", "parallel.pipeline=3", "parallel.context=2").parallel
    assert check_parallel(parallel, 48) == 4


def refused(starts: str, *settings: str, processes: int = 1, reason: str = ""):
    return pytest.param(starts, settings, processes, reason, id=" ".join(settings))


@pytest.mark.parametrize(
    ("starts", "settings", "processes", "reason"),
    [
        refused("parallel.sequence:", "parallel.sequence=true", reason="parallel.tensor is 1"),
        refused("parallel.virtual_pipeline:", "parallel.virtual_pipeline=2", reason="parallel.pipeline is 1"),
        refused(
            "parallel.overlap_param_gather:",
            "parallel.overlap_param_gather=true",
            "parallel.overlap_grad_reduce=true",
            "parallel.distributed_optimizer=false",
            reason="distributed optimizer",
        ),
        refused("parallel.overlap_param_gather:", "parallel.overlap_param_gather=true", reason="overlap_grad_reduce"),
        refused("parallel.pipeline_layers:", "parallel.pipeline_layers=[3, 4]", reason="2 numbers for 1"),
        refused(
            "parallel.pipeline_layers:",
            "parallel.pipeline_layers=[3, 0]",
            "parallel.pipeline=2",
            processes=2,
            reason="at least one layer",
        ),
        refused(
            "parallel.pipeline_layers:",
            "parallel.pipeline_layers=[3, 4]",
            "parallel.pipeline=2",
            "parallel.virtual_pipeline=2",
            processes=2,
            reason="virtual_pipeline",
        ),
        refused("parallel: expert 4", "parallel.expert=4", processes=6, reason="= 4 does not divide the 6"),
        refused(
            "parallel.expert:",
            "parallel.expert=2",
            "parallel.tensor=2",
            processes=4,
            reason="parallel.sequence to true",
        ),
        refused("policy.objective:", 'policy.objective="gspoo"', reason="did you mean gspo?"),
        refused("policy.objective:", 'policy.objective="my objective:x"', reason="package.module:name"),
        *(
            refused("policy.objective:", f'policy.objective="{name}"', reason="set num_mini_batches above 1")
            for name in ("dual_clip", "gspo", "cispo")
        ),
        refused("policy.importance_floor:", "policy.importance_floor=0.5", reason="without policy.importance_cap"),
        refused("policy.importance_mode:", 'policy.importance_mode="mask"', reason="without policy.importance_cap"),
        refused(
            "policy.importance_level:", 'policy.importance_level="sequence"', reason="without policy.importance_cap"
        ),
        refused(
            "policy.importance_floor:", "policy.importance_floor=0.5", "policy.importance_cap=2.0", reason="mode is cap"
        ),
        refused(
            "policy.importance_cap:",
            "policy.importance_cap=0.9",
            'policy.importance_mode="reject"',
            reason="engine and trainer agree",
        ),
        refused(
            "policy.importance_floor:",
            "policy.importance_cap=2.0",
            "policy.importance_floor=1.0",
            'policy.importance_mode="mask"',
            reason="engine and trainer agree",
        ),
        refused("advantage.scale_by_deviation:", "advantage.scale_by_deviation=false", reason="grpo's"),
        refused("advantage.overlong_buffer:", "advantage.overlong_buffer=4000", reason="do not fit"),
        refused(
            "advantage.overlong_buffer:",
            "advantage.overlong_buffer=40",
            "advantage.outcome_weight=0.0",
            reason="leaves them out",
        ),
        refused("prm.loss:", 'prm.loss="ce_intercept"', "rollout.samples_per_prompt=1", reason="compares siblings"),
        refused("prm.margin:", "prm.margin=1.0", reason="prefix_value, and the loss is ce"),
        refused("prm.adaptive_boundary:", "prm.adaptive_boundary=true", reason="set the loss to prefix_value"),
        refused("prm.difficulty_weights:", "prm.difficulty_weights=true", reason="or leave difficulty_weights out"),
        refused(
            "prm.loss:",
            'prm.loss="prefix_value"',
            "prm.adaptive_boundary=true",
            "rollout.samples_per_prompt=1",
            reason="compares siblings",
        ),
        refused(
            "advantage.estimator: prime_value",
            'advantage.estimator="prime_value"',
            'prm.loss="prefix_value"',
            reason="teaches their mean",
        ),
        refused("prm.softmin_temperature:", "prm.softmin_temperature=0.1", reason="set granularity to step"),
        *(
            refused(key, f'advantage.estimator="{name}"', setting, reason=reason)
            for name in ("prefix_td", "spro")
            for key, setting, reason in (
                ("advantage.process_weight: 0", "advantage.process_weight=0.0", "estimator to grpo"),
                ("prm.granularity: step", 'prm.granularity="step"', "set granularity to token"),
                ("prm.use_gt:", "prm.use_gt=true", "set use_gt to false"),
                ("advantage.estimator:", "rollout.samples_per_prompt=1", "at least 2"),
            )
        ),
        refused("prm.loss:", 'advantage.estimator="spro"', 'prm.loss="prefix_value"', reason="no PRM is built"),
        refused("models.prm.path:", 'advantage.estimator="spro"', 'models.prm.path="p"', reason="no PRM is built"),
        refused(
            "prm.reference:", 'advantage.estimator="spro"', 'prm.reference="policy"', reason="set reference to freeze"
        ),
        refused("eval.prm_rows:", 'advantage.estimator="spro"', 'eval.prm_rows=["r"]', reason="estimator spro"),
        refused("prm.passes:", "prm.passes=2", 'prm.update="none"', reason="does not learn"),
        refused("prm.ratio_floor:", "prm.ratio_floor=0.05", 'advantage.estimator="prime_value"', reason="has none"),
        refused("models.policy.path", "models.policy.path=null", reason="missing"),
        refused("models.prm.optimizer.min_lr:", "models.prm.optimizer.min_lr=1", reason="above lr"),
        refused("eval.every:", "eval.every=5", reason="data.eval"),
        refused("rollout.engine:", 'rollout.engine="replay"', reason="rollout.replay"),
        refused("rollout.replay:", 'rollout.replay="r.jsonl"', reason="sglang"),
        refused(
            "rollout.record:", 'rollout.engine="replay"', 'rollout.replay="r"', 'rollout.record="r"', reason="another"
        ),
        refused("rollout.tensor:", "rollout.tensor=4", processes=6, reason="(6 = 1 x 4 + 2)"),
        refused("rollout.expert:", "rollout.expert=3", "rollout.tensor=4", processes=4, reason="not divide"),
        refused(
            "rollout.expert:",
            "rollout.expert=2",
            "rollout.tensor=2",
            'rollout.engine="vllm"',
            processes=2,
            reason="SGLang",
        ),
        refused(
            "rollout.tensor:",
            "rollout.tensor=4",
            "launch.nodes=2",
            "launch.processes_per_node=6",
            processes=12,
            reason="stays within a node",
        ),
        refused("rollout.tensor:", "rollout.tensor=2", 'rollout.engine="embedded"', processes=2, reason="one process"),
        refused(
            "rollout.transport:", 'rollout.transport="disk"', 'rollout.engine="embedded"', reason="written in place"
        ),
        refused(
            "rollout.transport:",
            'rollout.transport="broadcast"',
            'rollout.engine="vllm"',
            "rollout.vllm.in_process=true",
            reason="set it to auto, live or bucket",
        ),
        refused("rollout.filter:", "rollout.filter.lower=0.9", reason="above upper 0.8"),
        refused("prm.loss:", 'prm.loss="dpo"', reason="set prm.update to reverse"),
        refused("prm.loss:", 'prm.loss="bon_acc"', 'prm.update="before"', reason="set prm.update to reverse"),
        refused("prm.loss:", 'prm.loss="bon_rm"', 'prm.update="none"', reason="set prm.update to reverse"),
        refused(
            "prm.loss:",
            'prm.loss="dpo"',
            'prm.update="reverse"',
            "rollout.samples_per_prompt=1",
            'advantage.estimator="reinforce"',
            reason="siblings",
        ),
        refused("prm.step_delimiter:", 'prm.step_delimiter=""', reason="empty"),
        refused("advantage.estimator:", "rollout.samples_per_prompt=1", reason="at least 2"),
        refused(
            "advantage.estimator:",
            'advantage.estimator="grpo"',
            "rollout.samples_per_prompt=1",
            reason="at least 2",
        ),
        refused(
            "advantage.estimator: prime_value",
            'advantage.estimator="prime_value"',
            "advantage.process_weight=0",
            reason="process_weight above 0",
        ),
        refused(
            "advantage.estimator: gae",
            'advantage.estimator="gae"',
            "advantage.gamma_process=0.9",
            reason="one discount",
        ),
        refused(
            "advantage.impl: torch", 'advantage.impl="torch"', "prm.use_gt=true", reason="does not have prm.use_gt"
        ),
        refused(
            "advantage.impl: triton",
            'advantage.impl="triton"',
            'advantage.estimator="gae"',
            reason="does not have advantage.estimator gae",
        ),
        refused("advantage:", "advantage.process_weight=0", "advantage.outcome_weight=0", reason="nothing"),
        refused("policy.kl_coef:", "policy.kl_coef=0.1", reason="kl_place"),
        refused("policy.kl_place:", 'policy.kl_place="loss"', reason="kl_coef"),
        refused("policy.clip_low:", "policy.clip_low=1.0", reason="under 1"),
        refused(
            "models.policy.num_mini_batches:", "models.policy.num_mini_batches=300", reason="300 mini-batches of 256"
        ),
        refused("models.prm.num_mini_batches:", "models.prm.num_mini_batches=300", reason="300 mini-batches of 256"),
        refused(
            "models.prm.num_mini_batches:",
            "models.policy.num_mini_batches=6",
            "models.prm.num_mini_batches=4",
            reason="(6 = 1 x 4 + 2)",
        ),
        refused(
            "models.policy.num_mini_batches:",
            "models.policy.num_mini_batches=3",
            "models.prm.num_mini_batches=4",
            reason="(4 = 1 x 3 + 1)",
        ),
    ],
)
def test_refused_with_the_reason(starts, settings, processes, reason):
    message = refusal(*settings, world_size=processes)
    assert message.startswith(starts)
    assert reason in message


def test_expert_tensor_parallelism_is_refused_on_gloo_only():
    settings = ("parallel.expert_tensor=2",)
    assert "gloo" in refusal(*settings, world_size=2, backend="gloo")
    assert check_train_config(train_config(*settings), 2, "nccl") == ()
    assert check_train_config(train_config(*settings), 2) == ()


def accepted(*settings: str, processes: int = 1):
    return pytest.param(settings, processes, id=" ".join(settings))


@pytest.mark.parametrize(
    ("settings", "processes"),
    [
        accepted("parallel.sequence=true", "parallel.tensor=2", processes=2),
        accepted("parallel.virtual_pipeline=2", "parallel.pipeline=2", processes=2),
        accepted("parallel.virtual_pipeline=1"),
        accepted("parallel.overlap_param_gather=true", "parallel.overlap_grad_reduce=true"),
        accepted("parallel.pipeline_layers=[3, 4]", "parallel.pipeline=2", processes=2),
        accepted("parallel.expert=2", "parallel.tensor=2", "parallel.sequence=true", processes=4),
        accepted('prm.loss="dpo"', 'prm.update="reverse"'),
        # No PRM: its settings do not matter.
        accepted('prm.loss="dpo"', "advantage.process_weight=0"),
        accepted("models.prm.num_mini_batches=300", "advantage.process_weight=0"),
        accepted("models.policy.num_mini_batches=8", "models.prm.num_mini_batches=2"),
        accepted("models.policy.num_mini_batches=2", "models.prm.num_mini_batches=8"),
        accepted("models.policy.num_mini_batches=256"),
        accepted('rollout.engine="replay"', 'rollout.replay="r"', 'rollout.record="s"'),
        accepted("rollout.filter.lower=0.5", "rollout.filter.upper=0.5"),
        accepted('policy.kl_place="reward"', "policy.kl_coef=0.1"),
        accepted("rollout.tensor=2", processes=4),
        accepted("rollout.tensor=4", "rollout.expert=2", processes=8),
        accepted("eval.every=5", 'data.eval=["e.jsonl"]'),
        accepted(
            'advantage.estimator="reinforce"',
            "rollout.samples_per_prompt=1",
            "rollout.filter.lower=0",
            "advantage.process_weight=0",
        ),
    ],
)
def test_accepted_without_a_word(settings, processes):
    assert check_train_config(train_config(*settings), processes) == ()


@pytest.mark.parametrize(
    ("settings", "processes", "words"),
    [
        (("rollout.sampling.top_p=0.9",), 1, "top_p 0.9"),
        (("rollout.samples_per_prompt=1", 'advantage.estimator="reinforce"'), 1, "only fractional outcomes"),
        (("rollout.prompts_per_step=8", "models.policy.num_mini_batches=4"), 4, "2 prompts for 4 data-parallel ranks"),
        (('prm.update="none"',), 1, "rewards nothing"),
    ],
)
def test_warnings(settings, processes, words):
    (warning,) = check_train_config(train_config(*settings), processes)
    assert words in warning


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), True),
        (("advantage.process_weight=0",), False),
        (('advantage.estimator="grpo"', "advantage.process_weight=0"), False),
        (('advantage.estimator="prime_value"',), True),
    ],
)
def test_needs_prm(settings, expected):
    assert needs_prm(train_config(*settings)) is expected


def test_sft():
    values = {"run": {"output_dir": "o", "steps": 1}, "model": "m", "data": {"train": ["a"]}, "batch_size": 2}
    config = SftConfig.model_validate_json(json.dumps(values))
    assert check_stage_config(config, 2) == ()
    assert "below the 4" in check_stage_config(config, 4)[0]
    values["parallel"] = {"tensor": 2}
    with pytest.raises(InputError, match="does not divide the 3 processes"):
        check_stage_config(SftConfig.model_validate_json(json.dumps(values)), 3)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"run": {"output_dir": "o"}}, r"run\.epochs: neither it nor run\.steps is given"),
        ({"run": {"output_dir": "o", "steps": 3, "epochs": 1}}, r"run\.epochs: is given beside run\.steps 3"),
        (
            {"data": {"train": ["a"], "held_out": ["b"], "held_out_share": 0.1}},
            r"data\.held_out_share: is given beside",
        ),
        ({"eval_every": 5}, r"eval_every: there is nothing to measure on"),
        ({"optimizer": {"warmup_steps": 2, "warmup_ratio": 0.1}}, r"optimizer\.warmup_ratio: is given beside"),
    ],
)
def test_supervised_settings_that_contradict_each_other(sections, words):
    values = {"run": {"output_dir": "o", "steps": 1}, "model": "m", "data": {"train": ["a"]}, **sections}
    with pytest.raises(InputError, match=words) as refused:
        check_stage_config(SftConfig.model_validate_json(json.dumps(values)))
    assert "\n" not in str(refused.value)


def test_what_prompts_are_drawn_by_has_one_meaning():
    check_train_config(train_config('data.draw="teaching"', "data.teaching.floor=0.25", "data.teaching.rest_steps=9"))
    assert "data.teaching: is read by data.draw teaching only" in refusal("data.teaching.rest_steps=9")
    assert "data.shuffle: false" in refusal('data.draw="teaching"', "data.shuffle=false")
    replay = ('rollout.engine="replay"', 'rollout.replay="r.jsonl"')
    assert "data.draw: teaching draws prompts" in refusal('data.draw="teaching"', *replay)


@pytest.mark.parametrize("setting", ["floor=0", "floor=0.3", "memory=1", "memory=-0.1", "rest_steps=-1"])
def test_bounds_of_teaching(setting):
    with pytest.raises(ValidationError):
        train_config(f"data.teaching.{setting}")


def test_triton_needs_a_gpu():
    assert "needs a GPU" in refusal('advantage.impl="triton"', backend="gloo")
    check_train_config(train_config('advantage.impl="triton"'), 1, "nccl")
    check_train_config(train_config('advantage.impl="triton"'))  # not known yet on a login node


def test_a_step_of_rare_success_is_warned_of():
    """With its mean outcome, where all-wrong prompts are kept, the PRM learns, and its loss has no intercept."""
    config = train_config("rollout.filter.lower=0.0")
    line = warn_rare_success(config, 0.04)
    assert line is not None and line.startswith("the mean outcome is 0.040, and rollout.filter.lower 0")
    assert "ce_intercept" in line
    bare = warn_rare_success(train_config("rollout.filter.lower=0.0", 'prm.loss="prefix_value"'), 0.04)
    assert bare is not None and bare.endswith("or prm.adaptive_boundary to true")
    anchored = train_config("rollout.filter.lower=0.0", 'prm.loss="prefix_value"', "prm.adaptive_boundary=true")
    assert warn_rare_success(anchored, 0.04) is None
    for other in ('prm.loss="ce_intercept"', "advantage.process_weight=0.0", "rollout.filter.lower=0.01"):
        assert warn_rare_success(train_config("rollout.filter.lower=0.0", other), 0.04) is None
    assert warn_rare_success(config, 0.3) is None
    assert warn_rare_success(train_config(), 0.04) is None
    alarms, figures = Alarms(config), {"engine/logprob_gap_mean": 1.0, "rollout/outcome": 0.04}
    assert [len(alarms.lines(figures, 0.5)) for _ in range(3)] == [2, 1, 1]  # rare success is told once


def test_the_gap_alarm_goes_by_what_was_measured():
    """0.094 is a sound engine's of 28 layers in bfloat16; a recording has no limit but the user's own."""
    figures = {"engine/logprob_gap_mean": 0.094, "rollout/outcome": 0.5}
    alarms = Alarms(train_config())
    assert alarms.lines(figures, 0.28) == alarms.lines(figures, None) == []
    (line,) = alarms.lines(figures | {"engine/logprob_gap_mean": 0.3}, 0.28)
    assert line.startswith("engine and trainer log-probs differ by 3.00e-01 on average, and rounding explains 2.8e-01")
    own = Alarms(train_config("rollout.logprob_alarm=0.05"))
    assert len(own.lines(figures, 0.28)) == len(own.lines(figures, None)) == 1
    assert len(alarms.lines(figures | {"engine/logprob_gap_mean": float("nan")}, 0.28)) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["log.trace_steps=[1, 2]"], "log.trace_steps: [1, 2] ends after run.steps 1; choose earlier steps"),
        (['log.trace_detail="operators"'], "log.trace_detail: there is no trace"),
        (['log.mlflow_uri="http://host:5000"'], "log.mlflow_uri: is read with log.mlflow_experiment only"),
        (["log.offline=true"], "log.offline: there is no tracker"),
        (
            ['log.mlflow_uri="http://host:5000"', 'log.mlflow_experiment="e"', "log.offline=true"],
            "log.offline: sends nothing to log.mlflow_uri",
        ),
    ],
)
def test_keys_of_the_log_that_do_not_fit(settings: list[str], said: str) -> None:
    assert refusal(*settings).startswith(said)


@pytest.mark.parametrize(
    "steps", ["[0, 1]", "[2, 1]", "[1]", "[1, 2, 3]", "5", '"5-6"', "[1.5, 2]", "[1, 51]", "[true, 1]"]
)
def test_a_window_of_a_trace_is_two_steps_in_order(steps: str) -> None:
    with pytest.raises(ValueError, match=r"log\.trace_steps"):
        train_config(f"log.trace_steps={steps}")


def test_a_window_within_the_run_passes() -> None:
    check_train_config(train_config("log.trace_steps=[1, 50]", "run.steps=50", 'log.trace_detail="operators"'))
