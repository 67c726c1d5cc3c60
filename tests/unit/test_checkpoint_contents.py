"""A resumed run knows its models and data by content, wherever they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prime_megatron.checkpoint.contents import contents_of
from prime_megatron.checkpoint.fingerprint import check_same_run
from prime_megatron.config import SftConfig, TrainConfig
from prime_megatron.errors import InputError
from tests.support.folders import config_of, write_folder


def config(model: Path, data: Path) -> TrainConfig:
    sections = {
        "run": {"output_dir": "out", "steps": 10},
        "models": {"policy": {"path": str(model)}},
        "data": {"train": [str(data)]},
    }
    return TrainConfig.model_validate_json(json.dumps(sections))


@pytest.fixture
def before(tmp_path: Path) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """(config, contents) of a run, as its checkpoint holds them."""
    write_folder(tmp_path / "model", config_of("Qwen2ForCausalLM", "qwen2"), shards=2)
    (tmp_path / "data.jsonl").write_text('{"a": 1}\n' * 50)
    saved = config(tmp_path / "model", tmp_path / "data.jsonl").model_dump(mode="json")
    return saved, contents_of(saved)


def go_on(before: tuple[Any, Any], model: Path, data: Path) -> None:
    now = config(model, data)
    check_same_run(before[0], now, before[1], contents_of(now.model_dump(mode="json")))


def test_another_place_is_the_same_run(tmp_path: Path, before: Any) -> None:
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    (tmp_path / "data.jsonl").rename(tmp_path / "other.jsonl")
    (tmp_path / "moved" / "README.md").write_text("text that no one reads")
    go_on(before, tmp_path / "moved", tmp_path / "other.jsonl")


def supervised(model: Path, data: Path) -> SftConfig:
    sections = {"run": {"output_dir": "out", "steps": 10}, "model": str(model), "data": {"train": [str(data)]}}
    return SftConfig.model_validate_json(json.dumps(sections))


def test_a_supervised_run_knows_its_model_by_content_too(tmp_path: Path, before: Any) -> None:
    """``before`` made the files."""
    saved = supervised(tmp_path / "model", tmp_path / "data.jsonl").model_dump(mode="json")
    held = contents_of(saved)
    (tmp_path / "model").rename(tmp_path / "moved")
    now = supervised(tmp_path / "moved", tmp_path / "data.jsonl")
    check_same_run(saved, now, held, contents_of(now.model_dump(mode="json")))
    (tmp_path / "moved" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="  model: the content is not what it was"):
        check_same_run(saved, now, held, contents_of(now.model_dump(mode="json")))


def _config_key(model: Path, data: Path) -> str:
    raw = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(raw | {"rope_theta": 5e5}))
    return "  models.policy.path: the content is not what it was (config.json)"


def _weight(model: Path, data: Path) -> str:
    path = sorted(model.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name] + 1}, path, metadata={"format": "pt"})
    return "  models.policy.path: the content is not what it was (weights)"


def _shape(model: Path, data: Path) -> str:
    path = sorted(model.glob("*.safetensors"))[0]
    save_file(load_file(path) | {"more": torch.ones(1)}, path, metadata={"format": "pt"})
    return "  models.policy.path: the content is not what it was (weights)"


def _tokenizer(model: Path, data: Path) -> str:
    (model / "tokenizer.json").write_text("{}")
    return "  models.policy.path: the content is not what it was (tokenizer.json)"


def _row(model: Path, data: Path) -> str:
    data.write_text('{"a": 1}\n' * 49 + '{"a": 2}\n')
    return "  data.train: the content is not what it was (file 1)"


@pytest.mark.parametrize("change", [_config_key, _weight, _shape, _tokenizer, _row])
@pytest.mark.parametrize("moved", [False, True])
def test_another_content_is_another_run(tmp_path: Path, before: Any, change: Any, moved: bool) -> None:
    model, data = tmp_path / "model", tmp_path / "data.jsonl"
    if moved:
        model, data = model.rename(tmp_path / "moved"), data.rename(tmp_path / "other.jsonl")
    line = change(model, data)
    with pytest.raises(InputError) as refused:
        go_on(before, model, data)
    assert refused.value.args[0].splitlines()[1:] == [line]


def test_a_file_that_is_gone_is_one_line(tmp_path: Path, before: Any) -> None:
    (tmp_path / "data.jsonl").unlink()
    with pytest.raises(InputError, match=r"data.jsonl: cannot be read \(No such file"):
        contents_of(before[0])


ROLES = {
    "models.policy.path": {"policy": {"path": "policy"}},
    "models.prm.path": {"policy": {"path": "policy"}, "prm": {"path": "prm"}},
    "models.reference": {"policy": {"path": "policy"}, "reference": "reference"},
    "models.critic.path": {"policy": {"path": "policy"}, "critic": {"path": "critic"}},
}
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")


def four_models(tmp_path: Path, key: str) -> TrainConfig:
    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: placed(one) for name, one in value.items()}
        return str(tmp_path / value)

    sections = {
        "run": {"output_dir": "out", "steps": 10},
        "models": placed(ROLES[key]),
        "data": {"train": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]},
        "rollout": {"engine": "replay", "replay": str(tmp_path / "replay.jsonl")},
    }
    return TrainConfig.model_validate_json(json.dumps(sections))


def put_models(tmp_path: Path) -> None:
    for name in ("policy", "prm", "reference", "critic"):
        write_folder(tmp_path / name, config_of("Qwen2ForCausalLM", "qwen2"), shards=2)
        # Large enough for samples of its bytes to leave most of them out.
        extra = {"more": torch.zeros(4 * 2**20, dtype=torch.uint8)}
        path = sorted((tmp_path / name).glob("*.safetensors"))[0]
        save_file(load_file(path) | extra, path, metadata={"format": "pt"})
        for file in JSON_FILES:
            if not (tmp_path / name / file).exists():
                (tmp_path / name / file).write_text('{"a": 1}')
        (tmp_path / name / "additional_chat_templates").mkdir()
        (tmp_path / name / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    for name in ("a.jsonl", "b.jsonl", "replay.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n' * 50)


def refused(saved: dict[str, Any], held: Any, config: TrainConfig) -> list[str]:
    """The lines that refuse the config; nothing where it is the same run."""
    try:
        check_same_run(saved, config, held, contents_of(config.model_dump(mode="json")))
    except InputError as error:
        return str(error).splitlines()[1:]
    return []


def test_one_byte_and_one_key_of_every_model_and_data_file_are_seen(tmp_path: Path) -> None:
    put_models(tmp_path)
    for key, models in ROLES.items():
        config = four_models(tmp_path, key)
        saved = config.model_dump(mode="json")
        held = contents_of(saved)
        folder = tmp_path / list(models)[-1]
        assert refused(saved, held, config) == []
        for path in (*sorted(folder.glob("*.safetensors")), folder / "additional_chat_templates" / "tools.jinja"):
            content = bytearray(path.read_bytes())
            for place in (-1, len(content) // 2, len(content) // 3):
                content[place] ^= 1
                path.write_bytes(content)
                what = "weights" if path.suffix == ".safetensors" else "additional_chat_templates/tools.jinja"
                assert refused(saved, held, config) == [f"  {key}: the content is not what it was ({what})"]
                content[place] ^= 1
                path.write_bytes(content)
        for name in JSON_FILES:
            text = (folder / name).read_text()
            (folder / name).write_text(json.dumps(json.loads(text) | {"one_key": 1}))
            assert refused(saved, held, config) == [f"  {key}: the content is not what it was ({name})"]
            (folder / name).write_text(text)
        (folder / "README.md").write_text("text that no one reads")
        assert refused(saved, held, config) == []
    for name, line in (("a.jsonl", "data.train: the content is not what it was (file 1)"),
                       ("b.jsonl", "data.train: the content is not what it was (file 2)"),
                       ("replay.jsonl", "rollout.replay: the content is not what it was (file 1)")):  # fmt: skip
        (tmp_path / name).write_text((tmp_path / name).read_text().replace("1", "2", 1))
        assert refused(saved, held, config) == [f"  {line}"]
        (tmp_path / name).write_text((tmp_path / name).read_text().replace("2", "1", 1))


def test_a_checkpoint_that_sampled_its_weights_goes_on(tmp_path: Path, before: Any) -> None:
    saved, held = before
    older = {key: {part: digest for part, digest in parts.items() if "every byte" not in part}
             for key, parts in held.items()}  # fmt: skip
    assert older != held
    now = config(tmp_path / "model", tmp_path / "data.jsonl")
    assert refused(saved, older, now) == []
    _weight(tmp_path / "model", tmp_path / "data.jsonl")
    assert refused(saved, older, now) != []


def test_data_in_a_folder_or_by_a_pattern_is_known_by_its_files(tmp_path: Path, before: Any) -> None:
    (tmp_path / "rows").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "rows" / name).write_text('{"a": 1}\n')
    for entry in (tmp_path / "rows", tmp_path / "rows" / "*.jsonl"):
        now = config(tmp_path / "model", entry)
        saved = now.model_dump(mode="json")
        held = contents_of(saved)
        assert refused(saved, held, now) == []
        (tmp_path / "rows" / "b.jsonl").write_text('{"a": 2}\n')
        assert refused(saved, held, now) == ["  data.train: the content is not what it was (file 2)"]
        (tmp_path / "rows" / "b.jsonl").write_text('{"a": 1}\n')
        (tmp_path / "rows" / "c.jsonl").write_text('{"a": 1}\n')
        assert refused(saved, held, now) == ["  data.train: the content is not what it was (file 3)"]
        (tmp_path / "rows" / "c.jsonl").unlink()
