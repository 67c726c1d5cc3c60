"""train and sft refuse bad input before any process starts or any file is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

from prime_megatron.cli import launch, sft, train
from prime_megatron.cli.main import main

ROW = {"data_source": "t", "ability": "math", "prompt": [{"role": "user", "content": "1 + 1"}]}
ROW["reward_model"] = {"style": "rule", "ground_truth": "2"}
SFT_ROW = {"prompt": "1 + 1", "response": "2"}
TRAIN = "run: {output_dir: OUT, steps: 3}\nmodels: {policy: {path: MODEL}}\ndata: {train: [DATA]}\n"
SFT = "run: {output_dir: OUT, steps: 3}\nmodel: MODEL\ndata: {train: [DATA]}\n"


class Site:
    """A folder with a config, a model without weights, and data."""

    def __init__(self, root: Path, verb: str) -> None:
        self.root, self.verb = root, verb
        self.model, self.data, self.out = root / "model", root / "data.jsonl", root / "out"
        words = {"<eos>": 0, "1": 1, "+": 2, "2": 3}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(self.model)
        self.set_vocabulary(4)
        self.row = ROW if verb == "train" else SFT_ROW
        self.data.write_text(json.dumps(self.row) + "\n")
        self.config = root / "run.yaml"
        text = (TRAIN if verb == "train" else SFT).replace("OUT", str(self.out))
        self.config.write_text(text.replace("MODEL", str(self.model)).replace("DATA", str(self.data)))

    def set_vocabulary(self, size: int) -> None:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
        config = Qwen2Config(architectures=["Qwen2ForCausalLM"], vocab_size=size, **sizes, **heads)
        config.save_pretrained(self.model)


@pytest.fixture(params=["train", "sft"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    def not_started(*args: object, **kwargs: object) -> int:
        raise AssertionError("a process was started")

    for module in (train, sft):
        monkeypatch.setattr(module, "start", not_started)
    return Site(tmp_path, request.param)


def no_model(site: Site) -> list[str]:
    (site.model / "config.json").unlink()
    for entry in site.model.iterdir():
        entry.unlink()
    site.model.rmdir()
    return [str(site.model)]


def small_vocabulary(site: Site) -> list[str]:
    site.set_vocabulary(3)
    return [str(site.model), "tokenizer does not match"]


def empty_data(site: Site) -> list[str]:
    site.data.write_text("\n")
    return [str(site.data), "empty"]


def no_data(site: Site) -> list[str]:
    site.data.unlink()
    return [str(site.data), "no such data file"]


def broken_row(site: Site) -> list[str]:
    site.data.write_text("{\n")
    return [str(site.data), "row 1"]


def full_output(site: Site) -> list[str]:
    site.out.mkdir()
    (site.out / "old").touch()
    return [str(site.out), "not empty", "--overwrite"]


def unknown_key(site: Site) -> list[str]:
    site.config.write_text(site.config.read_text().replace("steps:", "stepps:"))
    return [str(site.config), "stepps", "steps"]


def duplicate_key(site: Site) -> list[str]:
    site.config.write_text(site.config.read_text() + "run: {steps: 4}\n")
    return [str(site.config), "run"]


def wrong_type(site: Site) -> list[str]:
    site.config.write_text(site.config.read_text().replace("steps: 3", "steps: three"))
    return [str(site.config), "run.steps"]


def no_config(site: Site) -> list[str]:
    site.config.unlink()
    return [str(site.config)]


def bad_signal(site: Site) -> list[str]:
    """srun hands on USR1 and USR2 only."""
    site.config.write_text(site.config.read_text() + "checkpoint: {signal: TERM}\n")
    return ["checkpoint.signal", "USR1", "USR2"]


def bad_layout(site: Site) -> list[str]:
    site.config.write_text(site.config.read_text() + "parallel: {tensor: 2}\nlaunch: {processes_per_node: 3}\n")
    return ["tensor 2", "does not divide", "3 processes"]


def data_inside_output(site: Site) -> list[str]:
    site.config.write_text(site.config.read_text().replace(str(site.out), str(site.root)))
    return ["lies in run.output_dir"]


def model_is_a_file(site: Site) -> list[str]:
    no_model(site)
    site.model.write_text("weights")
    return ["models.policy.path" if site.verb == "train" else "model: ", str(site.model), "is a file"]


def nothing_left(site: Site) -> list[str]:
    key = "max_prompt_tokens" if site.verb == "train" else "max_tokens"
    site.config.write_text(site.config.read_text().replace("data: {", f"data: {{{key}: 2, "))
    return ["every one of the 1 rows is skipped", f"data.{key} 2"]


def second_file_of_another_kind(site: Site) -> list[str]:
    """Rows of the other verb."""
    other = site.root / "other.jsonl"
    other.write_text(json.dumps(SFT_ROW if site.verb == "train" else {"text": "1"}) + "\n")
    site.config.write_text(site.config.read_text().replace("train: [", f"train: [{other}, "))
    return [str(other), "row 1"]


def unknown_ability_or_weight(site: Site) -> list[str]:
    row = {**ROW, "ability": "maths"}
    if site.verb == "sft":
        chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2", "weight": 2}]
        row = {"messages": chat}
    site.data.write_text(json.dumps(row) + "\n")
    return [f"{site.data}, row 1", "did you mean 'math'" if site.verb == "train" else "weight must be 0"]


def argument_that_no_template_reads(site: Site) -> list[str]:
    site.config.write_text(site.config.read_text().replace("data: {", "data: {template_kwargs: {thinking: true}, "))
    return ["data.template_kwargs", "no chat template"]


def end_outside_the_vocabulary(site: Site) -> list[str]:
    (site.model / "generation_config.json").write_text('{"eos_token_id": 4}')
    return ["generation_config.json", "eos_token_id 4 is outside"]


@pytest.mark.parametrize(
    "harm",
    [
        model_is_a_file, nothing_left, second_file_of_another_kind, unknown_ability_or_weight,
        argument_that_no_template_reads, end_outside_the_vocabulary, no_model, small_vocabulary, empty_data,
        no_data, broken_row, full_output, unknown_key, duplicate_key, wrong_type, no_config, bad_layout, bad_signal,
        data_inside_output,
    ],
)  # fmt: skip
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    site: Site, harm: Callable[[Site], list[str]], capsys: pytest.CaptureFixture
) -> None:
    words = harm(site)
    before = sorted(site.root.rglob("*"))
    assert main([site.verb, str(site.config)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") <= (2 if harm is unknown_key else 1)  # a misspelt key is unknown, the right one missing
    for word in words:
        assert word in err
    assert sorted(site.root.rglob("*")) == before


def test_good_input_is_started_with_the_words_that_were_given(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def started(command: list[str], in_process: object, config: object, rendezvous: object, **rest: object) -> int:
        seen.append((command, config, rest))
        return 85

    monkeypatch.setattr(train if site.verb == "train" else sft, "start", started)
    assert main([site.verb, str(site.config), "run.seed=3", "--overwrite", "launch.processes_per_node=2"]) == 85
    (command, config, rest) = seen[0]
    overrides = ["run.seed=3", "launch.processes_per_node=2"]
    assert command == [sys.executable, "-m", "prime_megatron", site.verb, str(site.config), "--overwrite", *overrides]
    assert config.processes_per_node == 2  # type: ignore[attr-defined]
    assert rest == {"stop_signal": "USR1"}


def test_rank_of_another_launcher_is_a_worker(site: Site, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Under torchrun the config is refused by every rank and said by the first."""
    for rank, lines in (("0", 1), ("1", 0)):
        done = subprocess.run(
            [sys.executable, "-m", "prime_megatron", site.verb, str(site.config), "parallel.tensor=3"],
            env={**launch.os.environ, "RANK": rank, "WORLD_SIZE": "2"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.count("error: ") == lines


def test_what_only_a_training_run_has_is_refused_as_early(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """By validate, too: models and data that are here are looked at."""
    site = Site(tmp_path, "train")
    text = site.config.read_text()
    cases = {
        "models.prm.path: ": text.replace("models: {", f"models: {{prm: {{path: {site.data}}}, "),
        "rollout.sampling.max_response_tokens: 9000 leaves no room": text.replace(
            "data: {", "rollout: {engine: embedded, sampling: {max_response_tokens: 9000}}\ndata: {"
        ),
        "model_b: its tokenizer is not that of": text.replace(
            "models: {", f"models: {{prm: {{path: {site.root}/model_b}}, "
        ),
        "model_c/config.json: vocab_size 3 is too small": text.replace(
            "models: {", f"models: {{reference: {site.root}/model_c, "
        ),
        "prm.step_delimiter 'Next step': no token": text + "prm: {granularity: step, step_delimiter: Next step}\n",
        "no row is left to use (data.skip_abilities)": text.replace("data: {", "data: {skip_abilities: [math], "),
    }
    sizes = json.loads((site.model / "config.json").read_text()) | {"max_position_embeddings": 4000}
    (site.model / "config.json").write_text(json.dumps(sizes))
    for name, ids in (("model_b", {"<eos>": 0, "+": 1, "1": 2, "2": 3}), ("model_c", None)):
        shutil.copytree(site.model, site.root / name)
        for file in (site.root / name).glob("*token*"):
            if ids is None:
                file.unlink()
            elif file.name == "tokenizer.json":
                row = json.loads(file.read_text())
                row["model"]["vocab"] = ids
                file.write_text(json.dumps(row))
    small = json.loads((site.root / "model_c" / "config.json").read_text()) | {"vocab_size": 3}
    (site.root / "model_c" / "config.json").write_text(json.dumps(small))
    for words, changed in cases.items():
        site.config.write_text(changed)
        for verb in ("train", "validate"):
            assert main([verb, str(site.config)]) == 2
            err = capsys.readouterr().err
            assert words in err and err.count("\n") == 1, (verb, err)
    site.config.write_text(text)
    assert main(["validate", str(site.config)]) == 0
    assert "prompts over 920 tokens are skipped" in capsys.readouterr().err, "4000 less 3072 less what SGLang keeps"
