"""What `validate` passes, `train` can start: odd models, templates, recordings and values end in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prime_megatron.cli.main import main
from prime_megatron.config import SftConfig, TrainConfig
from prime_megatron.config.keys import keys_of
from prime_megatron.errors import InputError
from prime_megatron.rollout.recording import read_recording
from tests.support import toy
from tests.support.payload import Payload

NESTED = "[" * 5000 + "]" * 5000
BAD_JSON = ["", NESTED, '{"a": ' * 5000, "9" * 5000, '{"a": "\\ud800"}', "null", "[]", "\x00"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = toy.make_model(folder / "model", hidden=32, layers=2)
    config = toy.settings(model, toy.make_prompts(folder / "prompts.jsonl"), folder / "out")
    (folder / "run.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "model", tmp_path / "model"))


def refusal(whole: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main(["validate", str(whole / "run.json"), *overrides]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", BAD_JSON)
def test_odd_json_of_a_model_is_one_line(
    name: str, text: str, whole: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / name).write_text(text)
    said = refusal(whole, capsys, f"models.policy.path={model}")
    assert str(model / name) in said or (name == "tokenizer.json" and str(model) in said)
    assert len(said) < 500


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"eos_token_id": 65}, "eos_token_id = 65 is outside the vocabulary of 65"),
        ("config.json", {"eos_token_id": [1, 99]}, "outside the vocabulary of 65"),
        ("generation_config.json", {"eos_token_id": 99}, "eos_token_id 99 is outside the model's vocabulary"),
        ("config.json", {"hidden_size": 10**200}, "hidden_size = 1000"),
        ("config.json", {"num_hidden_layers": 2**40, "layer_types": None}, "num_hidden_layers = 1099511627776"),
        ("config.json", {"rms_norm_eps": 10**299}, "rms_norm_eps = 1000"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is not a number"),
    ],
)
def test_odd_values_of_a_model_are_one_line(
    name: str, change: dict[str, Any], said: str, whole: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | change))
    assert said in refusal(whole, capsys, f"models.policy.path={model}")


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].content.foo.bar }}", "{{ 1 / 0 }}", "{% for m in messages %}", "{{ raise_exception('no') }}",
     "{{ messages[7]['x'] }}", "{{ unknown() }}", "{{ messages + 1 }}", "{{ ''.__class__.__mro__ }}", "",
     "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"],
)  # fmt: skip
def test_a_template_that_raises_is_one_line(
    template: str, whole: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "chat_template.jinja").write_text(template)
    assert f"{model}: the chat template" in refusal(whole, capsys, f"models.policy.path={model}")


@pytest.mark.parametrize("key", ["models.policy.path", "models.prm.path", "models.reference", "models.critic.path"])
def test_a_file_where_a_model_folder_is_wanted(
    key: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("weights")
    gae = ["advantage.estimator=gae"] if "critic" in key else []
    assert "is a file; give an HF folder" in refusal(whole, capsys, f"{key}={tmp_path / 'file'}", *gae)
    for missing in (tmp_path / "file" / "below", tmp_path / "nowhere"):
        assert main(["train", str(whole / "run.json"), f"{key}={missing}", *gae]) == 2
        said = capsys.readouterr().err
        assert str(missing) in said and said.count("error:") == 1 and "Traceback" not in said
    assert not (whole / "out").exists()


def test_weights_that_would_be_unpickled_are_not_read(
    whole: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    (model / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "ran"), model / "pytorch_model.bin")
    assert main(["train", str(whole / "run.json"), f"models.prm.path={model}"]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_triton_and_transformer_engine_need_a_gpu(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "models.logprob_impl: triton needs a GPU" in refusal(whole, capsys, "models.logprob_impl=triton")
    assert "models.layers: te is not to be had here (no CUDA device)" in refusal(whole, capsys, "models.layers=te")
    gpus = ["models.logprob_impl=triton", "models.layers=te", "launch.device_memory=80GiB"]
    assert main(["validate", str(whole / "run.json"), *gpus]) == 0


@pytest.mark.parametrize("text", [*BAD_JSON, '{"step": 1}', '{"step": 1, "groups": [{}]}', '{"step": 1, "groups": 3}'])
def test_a_recording_that_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    import pickle

    for content in (text.encode() or b"\n", pickle.dumps(Payload(tmp_path / "ran")).replace(b"\n", b"")):
        (tmp_path / "record").write_bytes(content)
        with pytest.raises(InputError, match=r"record:1: not a recorded step \([^\n]*$"):
            read_recording(str(tmp_path / "record"))
    assert not (tmp_path / "ran").exists()


SFT_KEYS = [key.name for key in keys_of(SftConfig)]
TRAIN_KEYS = [key.name for key in keys_of(TrainConfig)]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats()
    | st.sampled_from([0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, 1e308, 5e-324])
    | st.sampled_from(["none", "null", "auto", "~", "$", "/", ".", ""]) | st.text(max_size=8)
)  # fmt: skip
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=2)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(TRAIN_KEYS), value=VALUES, spelling=st.sampled_from(["file", "override", "raw"]))
def test_any_value_of_any_key_is_a_config_or_a_line(
    key: str, value: Any, spelling: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clear line and exit code 2, or a config that can start; never a traceback."""
    config = json.loads((whole / "run.json").read_text())
    overrides = []
    if spelling == "file":
        section = config
        *sections, last = key.split(".")
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    elif spelling == "override":
        overrides = [f"{key}={json.dumps(value)}"]
    else:
        overrides = [f"{key}={value}".replace("\0", "")]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        code = main(["validate", str(path), "--", *overrides] if overrides else ["validate", str(path)])
    except SystemExit as error:  # argparse's own
        code = int(error.code or 0)
    said = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in said
    if code == 2:
        assert "error: " in said and len(said) < 5000
    assert not os.path.lexists(whole / "out")
