"""What a user writes reaches the run as it was written: number signs, colons, the word none, ~ and variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prime_megatron.config import TrainConfig
from prime_megatron.config.check import check_train_config
from prime_megatron.config.check_stage import check_stage_config
from prime_megatron.config.load import dump_yaml, load_sft_config, load_train_config
from prime_megatron.errors import InputError

BASE = "run: {output_dir: out, steps: 3}\nmodels: {policy: {path: m}}\ndata: {train: [a.jsonl]}\n"


def load(tmp_path: Path, text: str, *overrides: str) -> TrainConfig:
    (tmp_path / "run.yaml").write_text(text)
    config = load_train_config(str(tmp_path / "run.yaml"), list(overrides))
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert load_train_config(str(tmp_path / "again.yaml"), []) == config, "the dumped config is another"
    return config


def at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.system_prompt=Solve it # then box it", "Solve it # then box it"),
        ("data.system_prompt=Answer: in a box", "Answer: in a box"),
        ("data.system_prompt=#1 rule", "#1 rule"),
        ("data.system_prompt= spaces stay ", " spaces stay "),
        ('data.system_prompt="a # b"', "a # b"),
        ("run.output_dir=runs/a #1", "runs/a #1"),
        ("run.name=a=b", "a=b"),
        ("run.name=123", "123"),
        ("run.name=> later", "> later"),
        ("prm.step_delimiter=\n", "\n"),
        ('prm.step_delimiter="\\n\\n"', "\n\n"),
        ("run.steps= 4 ", 4),
        ("data.train=[a b, c]", ("a b", "c")),
        ("models.policy.optimizer.lr=1e-3", 1e-3),
    ],
)
def test_an_override_is_kept_whole(override: str, value: Any, tmp_path: Path) -> None:
    assert at(load(tmp_path, BASE, override), override.partition("=")[0]) == value


@pytest.mark.parametrize(
    "override",
    ["run.steps=3 #5", "data.train=[a, b] # c", 'run.name="a" # b', "models.policy.optimizer={lr: 1e-3} # x",
     'run.name="a" b'],
)  # fmt: skip
def test_an_override_is_never_cut(override: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^override '[^\n]*$"):
        load(tmp_path, BASE, override)


@pytest.mark.parametrize("word", ["none", "None", "null", "~"])
@pytest.mark.parametrize(
    "key",
    ["log.wandb_project", "rollout.record", "models.reference", "data.system_prompt", "packing.max_tokens",
     "rollout.dtype", "parallel.pipeline_layers", "models.prm.path", "rollout.logprob_alarm", "launch.device_memory"],
)  # fmt: skip
def test_none_is_null_where_a_key_may_be_absent(key: str, word: str, tmp_path: Path) -> None:
    assert at(load(tmp_path, BASE, f"{key}={word}"), key) is None
    section, _, name = key.rpartition(".")
    if section not in ("models.prm",):
        text = BASE.replace("models: {", f"models: {{{name}: {word}, ") if section == "models" else BASE
        text = text.replace("data: {", f"data: {{{name}: {word}, ") if section == "data" else text
        text += f"{section}: {{{name}: {word}}}\n" if section not in ("models", "data") else ""
        assert at(load(tmp_path, text), key) is None


@pytest.mark.parametrize("key", ["run.name", "run.output_dir"])
def test_the_word_none_needs_quotes_in_text(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{key}: is the word none without quotes"):
        load(tmp_path, BASE, f"{key}=none")
    assert at(load(tmp_path, BASE, f'{key}="none"'), key) == "none"
    for list_of_texts in ("data.train=[none]", "data.eval=[a, None]", "verify.custom={math: none}"):
        with pytest.raises(InputError, match="without quotes"):
            load(tmp_path, BASE, list_of_texts)
    with pytest.raises(InputError, match=r"run\.yaml:1: run\.name: is the word none"):
        load(tmp_path, BASE.replace("steps: 3", "steps: 3, name: none"))
    assert load(tmp_path, BASE, 'data.system_prompt="none"').data.system_prompt == "none"


def test_none_stays_a_choice(tmp_path: Path) -> None:
    config = load(tmp_path, BASE, "parallel.offload=none", "prm.update=none", "parallel.recompute=none")
    assert (config.parallel.offload, config.prm.update, config.parallel.recompute) == ("none", "none", "none")


def test_paths_mean_what_they_mean_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    paths = {
        "run.output_dir": "~/runs/$SCRATCH",
        "models.policy.path": "${SCRATCH}/policy",
        "models.prm.path": "$SCRATCH/prm",
        "models.critic.path": "~/critic",
        "models.reference": "~/reference",
        "rollout.record": "~/record",
        "rollout.replay": "$SCRATCH/replay",
    }
    config = load(tmp_path, BASE, *(f"{key}={path}" for key, path in paths.items()))
    for key, path in paths.items():
        expected = path.replace("~", "/home/me").replace("${SCRATCH}", "/scratch/me").replace("$SCRATCH", "/scratch/me")
        assert at(config, key) == expected
    lists = load(tmp_path, BASE, "data.train=[~/a.jsonl, $SCRATCH/b.jsonl]", "data.eval=[~/c.jsonl]").data
    assert lists.train == ("/home/me/a.jsonl", "/scratch/me/b.jsonl") and lists.eval == ("/home/me/c.jsonl",)
    assert load(tmp_path, BASE, "run.name=~/$SCRATCH").run.name == "~/$SCRATCH", "a name is no path"
    for wrong in ("$NOWHERE/a", "${NOWHERE}", "~nobody-of-this-name/a", "' '"):
        with pytest.raises(InputError, match=r"run\.output_dir: expected a path[^\n]*$"):
            load(tmp_path, BASE, f"run.output_dir={wrong}")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("data.train=a[1].jsonl", '(write ["a[1].jsonl"])'),
        ("data.train=12", '(write ["12"])'),
        ("parallel.pipeline_layers=4", "(write [4])"),
        ("models.policy.optimizer.betas=[0.9]", "expected more values"),
        ("models.policy.optimizer.betas=[0.9, 0.9, 0.9]", "at most 2 values"),
        ("run.steps=3.0", "(write 3)"),
    ],
)
def test_a_spelling_that_is_proposed_is_one(value: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, BASE, value)
    assert said in str(refused.value)
    proposed = str(refused.value).partition("(write ")[2].partition(")")[0]
    if proposed:
        load(tmp_path, BASE, f"{value.partition('=')[0]}={proposed}")


@pytest.mark.parametrize("value", ["data.train={a: b}", "data.train=true", "run.steps=1e30", "data.eval=none"])
def test_no_spelling_is_proposed_where_there_is_none(value: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load(tmp_path, BASE, value)
    assert "write" not in str(refused.value)


def test_what_a_schedule_never_comes_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "sft.yaml").write_text("run: {output_dir: o, steps: 5}\nmodel: m\ndata: {train: [a.jsonl]}\n")
    for warmup, said in ((4, ""), (5, "only the last update has"), (9, "no update comes to")):
        sft = load_sft_config(str(tmp_path / "sft.yaml"), [f"optimizer.warmup_steps={warmup}"])
        assert said in " ".join(check_stage_config(sft)) and bool(said) == bool(check_stage_config(sft))
    for ratio, said in ((0.61, ""), (0.9, "warmup_ratio: a warm-up of 5 updates is as long as the run of 5")):
        sft = load_sft_config(str(tmp_path / "sft.yaml"), [f"optimizer.warmup_ratio={ratio}"])
        assert said in " ".join(check_stage_config(sft)) and bool(said) == bool(check_stage_config(sft))
    many = ["models.policy.optimizer.warmup_steps=6", "models.policy.num_mini_batches=2", "run.steps=3"]
    warnings = check_train_config(load(tmp_path, BASE, "models.prm.optimizer.warmup_steps=7", *many))
    assert [line.partition(":")[0] for line in warnings if "warm-up" in line] == [
        "models.policy.optimizer.warmup_steps",
        "models.prm.optimizer.warmup_steps",
    ]
    with pytest.raises(InputError, match=r"optimizer\.min_lr"):
        check_stage_config(load_sft_config(str(tmp_path / "sft.yaml"), ["optimizer.min_lr=1"]))


def test_a_delimiter_of_a_backslash_is_warned_of(tmp_path: Path) -> None:
    said = check_train_config(load(tmp_path, BASE, "prm.step_delimiter=\\n\\n"))
    assert any("prm.step_delimiter" in line and "'prm.step_delimiter=\"\\n\"'" in line for line in said)
    assert not any("step_delimiter" in line for line in check_train_config(load(tmp_path, BASE)))
