"""Files, presets and overrides to configs; every refusal with its place, key and remedy."""

import textwrap

import pytest

from prime_megatron.config import PrmLossKind, RewardNorm, TrainConfig
from prime_megatron.config.load import dump_yaml, load_sft_config, load_train_config, to_dict
from prime_megatron.config.presets import PRESETS
from prime_megatron.config.strict_yaml import parse_text
from prime_megatron.errors import InputError

BASE = """\
run: {output_dir: runs/x, steps: 3}
models:
  policy: {path: m, optimizer: {lr: 1e-6}}
data: {train: [a.jsonl]}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def refusal(path: str, overrides: list[str] | None = None, load=load_train_config) -> list[str]:
    with pytest.raises(InputError) as error:
        load(path, overrides or [])
    return str(error.value).replace(path, "FILE").split("\n")


def test_file_and_overrides(write):
    path = write(BASE)
    config = load_train_config(
        path,
        [
            "prm.beta=.5e-1",
            "run.steps=7",
            "data.train=[x.jsonl, y.parquet]",
            "run.name='1e-6'",
            'prm.step_delimiter="\\n\\n"',
            "rollout.filter={lower: 0, upper: 1}",
            "packing.max_tokens=",
        ],
    )
    assert config.models.policy.optimizer.lr == 1e-6
    assert (config.prm.beta, config.run.steps, config.run.name) == (0.05, 7, "1e-6")
    assert config.data.train == ("x.jsonl", "y.parquet")
    assert config.prm.step_delimiter == "\n\n"
    assert (config.rollout.filter.lower, config.rollout.filter.upper, config.rollout.filter.max_rounds) == (0, 1, 8)
    assert config.packing.max_tokens is None


def test_an_override_sets_one_name_of_a_mapping(write):
    config = load_train_config(write(BASE), ["data.template_kwargs.enable_thinking=false", "verify.custom.mine=a.b:c"])
    assert config.data.template_kwargs == {"enable_thinking": False}
    assert config.verify.custom == {"mine": "a.b:c"}


def test_later_override_wins(write):
    assert load_train_config(write(BASE), ["run.steps=7", "run.steps=9"]).run.steps == 9


def test_setting_one_key_keeps_the_other_defaults_of_its_section(write):
    path = write(BASE)
    untouched = load_train_config(path, []).models
    config = load_train_config(path, ["models.prm.num_mini_batches=2", "models.critic.optimizer.eps=1e-7"])
    assert config.models.prm.optimizer == untouched.prm.optimizer
    assert (config.models.prm.optimizer.lr, config.models.prm.optimizer.clip_grad) == (1e-6, 10.0)
    assert config.models.critic.optimizer.lr == 1e-6
    sft = load_sft_config(
        write("run: {output_dir: o, steps: 1}\nmodel: m\ndata: {train: [a.jsonl]}\noptimizer: {warmup_steps: 5}\n"), []
    )
    assert (sft.optimizer.lr, sft.optimizer.schedule, sft.optimizer.warmup_steps) == (1e-5, "cosine", 5)


@pytest.mark.parametrize("name", sorted({"default", *PRESETS}))
def test_preset_lies_below_the_file_and_the_file_below_overrides(write, name):
    path = write(BASE)
    plain = load_train_config(path, [f"preset={name}"])
    assert plain.preset == name

    def leaves(values, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    saved = to_dict(plain)
    for key, value in leaves(PRESETS.get(name, {})):
        section, found = key.split("."), saved
        for part in section:
            found = found[part]
        if key not in ("models.policy.optimizer.lr", "run.steps"):
            assert found == value, key
    upper = load_train_config(write(BASE + f"preset: {name}\nprm: {{norm: batch_norm, beta: 0.3}}\n"), ["prm.beta=0.4"])
    assert (upper.prm.norm, upper.prm.beta) == (RewardNorm.batch_norm, 0.4)


@pytest.mark.parametrize("name", sorted({"default", *PRESETS}))
def test_dumped_config_loads_as_the_same(write, name):
    config = load_train_config(write(BASE), [f"preset={name}", "run.name=no", "prm.step_delimiter='1e6'"])
    again = load_train_config(write(dump_yaml(config)), [])
    assert again == config
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert parse_text(dump_yaml(config), "f").value == to_dict(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  shufle: no", "FILE:6: unknown key data.shufle; did you mean data.shuffle?"),
        ("prm: {los: ce}", "FILE:6: unknown key prm.los; did you mean prm.loss?"),
        ("steps: 4", "FILE:6: unknown key steps; did you mean run.steps or prm.health.steps?"),
        ("max_prompt_token: 4", "FILE:6: unknown key max_prompt_token; did you mean data.max_prompt_tokens?"),
        ("rollout:\n  filter:\n    min: 0.1", None),
        ("  shuffle: no", 'FILE:6: data.shuffle: expected true or false (write false), got text "no"'),
        (
            "parallel: {offload: true}",
            "FILE:6: parallel.offload: expected one of none, generation, phases (write generation), got true",
        ),
        (
            "parallel: {offload: false}",
            "FILE:6: parallel.offload: expected one of none, generation, phases (write none), got false",
        ),
        ("  shuffle: 1", "FILE:6: data.shuffle: expected true or false, got 1"),
        (
            "  max_prompt_tokens: 1e3",
            "FILE:6: data.max_prompt_tokens: expected a whole number (write 1000), got 1000.0",
        ),
        ("  max_prompt_tokens: '3'", 'FILE:6: data.max_prompt_tokens: expected a whole number, got text "3"'),
        ("  max_prompt_tokens: true", "FILE:6: data.max_prompt_tokens: expected a whole number, got true"),
        ("  max_prompt_tokens: 0", "FILE:6: data.max_prompt_tokens: expected a value greater than 0, got 0"),
        ("prm:\n  beta: 'x'", 'FILE:7: prm.beta: expected a number, got text "x"'),
        ("prm:\n  beta: .nan", 'FILE:7: prm.beta: expected a number, got text ".nan"'),
        ("prm: {loss: cee}", None),
        ("prm:", "FILE:6: prm: expected a section of `key: value` lines, got nothing (null)"),
        ("prm: 3", "FILE:6: prm: expected a section of `key: value` lines, got 3"),
        ("  eval: e.jsonl", 'FILE:6: data.eval: expected a list (write [e.jsonl]), got text "e.jsonl"'),
        ("  eval: [e.jsonl, 3]", 'FILE:6: data.eval[1]: expected text (write "3"), got 3'),
        ("preset: papr", None),
    ],
)
def test_one_line_for_a_wrong_key_or_value(write, text, message):
    base = BASE.replace("data: {train: [a.jsonl]}\n", "data:\n  train: [a.jsonl]\n")
    lines = refusal(write(base + text + "\n"))
    assert len(lines) == 1, lines
    assert lines[0].startswith("FILE:"), lines
    if message:
        assert lines[0] == message


def test_choices_are_listed_with_the_nearest(write):
    (line,) = refusal(write(BASE + "prm: {loss: cee}\n"))
    choices = "ce, ce_intercept, dpo, bon_acc, bon_rm, prefix_value, prefix_ce, last_ce"
    assert line == f'FILE:5: prm.loss: expected one of {choices} (did you mean ce?), got text "cee"'
    (line,) = refusal(write(BASE + "preset: papr\n"))
    assert "original, recipe, ipvrm, spro, dapo, drgrpo, gspo, cispo (did you mean paper?)" in line
    (line,) = refusal(write(BASE + "parallel: {recompute: ful}\n"))
    assert "one of none, selective, full (did you mean full?)" in line
    (line,) = refusal(write(BASE + "rollout: {dtype: bf16}\n"))
    assert "one of float32, bfloat16" in line


def test_unknown_key_without_a_likeness_lists_the_keys(write):
    (line,) = refusal(write(BASE + "packing: {zzzqqq: 1}\n"))
    assert line == (
        "FILE:5: unknown key packing.zzzqqq; the keys here are max_tokens, max_sequences, padded; "
        "remove it or correct its name"
    )


def test_missing_keys(write):
    lines = refusal(write("models: {policy: {path: m}}\n"))
    assert lines == [
        "FILE: run.output_dir is missing; add it (it has no default)",
        "FILE: run.steps is missing; add it (it has no default)",
        "FILE: data.train is missing; add it (it has no default)",
    ]
    assert refusal(write(BASE.replace(", steps: 3", ""))) == [
        "FILE:1: run.steps is missing; add it (it has no default)"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.stepz=3", "override 'run.stepz=3': unknown key run.stepz; did you mean run.steps?"),
        ("rum.steps=3", "override 'rum.steps=3': unknown key rum; did you mean run?"),
        ("steps=3", "override 'steps=3': unknown key steps; did you mean run.steps or prm.health.steps?"),
        ("run.steps.x=3", "override 'run.steps.x=3': unknown key run.steps.x: run.steps is a value, not a section"),
        ("run.steps", "override 'run.steps': not of the form section.key=value"),
        ("=3", "override '=3': not of the form section.key=value"),
        ("run..steps=3", "override 'run..steps=3': not of the form section.key=value"),
        ("run.steps=a", "override 'run.steps=a': run.steps: expected a whole number, got text \"a\""),
        ("data.shuffle=no", None),
        ("data.train=[", None),
        ("run={steps: 3, stepz: 4}", None),
    ],
)
def test_bad_overrides_are_named(write, override, message):
    (line,) = refusal(write(BASE), [override])
    assert line.startswith(f"override {override!r}: ")
    if message:
        assert line == message


def test_several_errors_one_line_each_in_file_order(write):
    lines = refusal(
        write(BASE + "prm: {loss: x, beta: -1}\nrollout:\n  prompts_per_step: no\nzz: 1\n"), ["run.steps=0"]
    )
    assert lines[0] == "override 'run.steps=0': run.steps: expected a value greater than 0, got 0"
    assert [line.split(":")[1] for line in lines[1:]] == ["5", "5", "7", "8"]


def test_many_errors_are_cut(write):
    keys = "".join(f"zz{i}: 1\n" for i in range(9))
    lines = refusal(write(BASE + keys))
    assert len(lines) == 6
    assert lines[-1] == "and 4 more in FILE"


def test_sft(write):
    path = write("run: {output_dir: o, steps: 10}\nmodel: m\ndata: {train: [a.jsonl]}\n")
    assert load_sft_config(path, ["batch_size=4"]).batch_size == 4
    (line,) = refusal(path, ["batchsize=4"], load_sft_config)
    assert line == "override 'batchsize=4': unknown key batchsize; did you mean batch_size?"


def test_enums_arrive_as_enums(write):
    assert load_train_config(write(BASE + "prm: {loss: dpo}\n"), []).prm.loss is PrmLossKind.dpo
