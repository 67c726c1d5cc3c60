"""Bad input: one line that names the file, row or key and says what to do; exit code 2; nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prime_megatron.cli.main import main
from tests.support.toy import make_model, make_prompts, make_sft, merge, settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make_model(folder / "model", layers=1)
    make_prompts(folder / "prompts.jsonl")
    make_sft(folder / "sft.jsonl")
    return folder


def good(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return settings(str(folder / "model"), str(folder / "prompts.jsonl"), tmp_path / "out")


def write(path: Path, config: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(config))
    return str(path)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit code 2 and one line on stderr with all the words."""
    code = main(arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert code == 2
    assert len(lines) == 1, lines
    for word in words:
        assert word in lines[0], lines[0]


def other_model(folder: Path, tmp_path: Path, edit: Callable[[Path], None]) -> str:
    copy = tmp_path / "model"
    shutil.copytree(folder / "model", copy)
    edit(copy)
    return str(copy)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "misspelt key": ({"rollout": {"prompt_per_step": 4}}, ("rollout.prompt_per_step", "prompts_per_step")),
    "wrong type": ({"run": {"steps": "three"}}, ("run.steps", "three")),
    "bad value": ({"prm": {"loss": "hinge"}}, ("prm.loss", "hinge")),
    "layout": ({"parallel": {"tensor": 2, "pipeline": 2}}, ("tensor", "pipeline", "4", "1")),
    "missing model": ({"models": {"policy": {"path": "/nowhere/model"}}}, ("/nowhere/model",)),
    "missing PRM": ({"models": {"prm": {"path": "/nowhere/prm"}}}, ("/nowhere/prm",)),
    "missing data": ({"data": {"train": ["/nowhere/rows.jsonl"]}}, ("/nowhere/rows.jsonl",)),
    "dpo without reverse": ({"prm": {"loss": "dpo", "update": "after"}}, ("prm.update", "reverse")),
}


@pytest.mark.parametrize("verb", ["train", "validate"])
@pytest.mark.parametrize("name", ["misspelt key", "wrong type", "bad value", "layout", "dpo without reverse"])
def test_config(name: str, verb: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over, words = CONFIGS[name]
    path = write(tmp_path / "run.yaml", merge(good(folder, tmp_path), over))
    refused([verb, path], capsys, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["missing model", "missing PRM", "missing data"])
def test_missing(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over, words = CONFIGS[name]
    refused(["train", write(tmp_path / "run.yaml", merge(good(folder, tmp_path), over))], capsys, *words)
    assert not (tmp_path / "out").exists()


def test_duplicate_key(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(write(tmp_path / "run.yaml", good(folder, tmp_path)))
    path.write_text(path.read_text() + "run: {steps: 5}\n")
    refused(["train", str(path)], capsys, "run.yaml", "run", "duplicate")


def test_vocabulary_too_small(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = other_model(folder, tmp_path, lambda path: edit_json(path / "config.json", vocab_size=20))
    config = merge(good(folder, tmp_path), {"models": {"policy": {"path": model}}})
    refused(["train", write(tmp_path / "run.yaml", config)], capsys, model, "20")
    assert not (tmp_path / "out").exists()


def test_unknown_architecture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit = {"architectures": ["GPT2LMHeadModel"]}
    model = other_model(folder, tmp_path, lambda path: edit_json(path / "config.json", **edit))
    config = merge(good(folder, tmp_path), {"models": {"policy": {"path": model}}})
    refused(["train", write(tmp_path / "run.yaml", config)], capsys, "GPT2LMHeadModel", "Qwen2ForCausalLM")
    assert not (tmp_path / "out").exists()


def test_shape_that_disagrees(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = other_model(folder, tmp_path, lambda path: edit_json(path / "config.json", intermediate_size=64))
    config = merge(good(folder, tmp_path), {"models": {"policy": {"path": model}}})
    refused(["train", write(tmp_path / "run.yaml", config)], capsys, "mlp.", "model.safetensors")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", ("rows.jsonl", "empty")),
        ("{not json}", ("rows.jsonl", "row 1", "JSON")),
        ('{"prompt": [{"role": "user", "content": "1+1?"}], "ability": "math"}', ("row 1", "reward_model")),
        (
            '{"prompt": [{"role": "user", "content": "1+1?"}], "ability": "math", "reward_model": {"style": "rule"}}',
            ("row 1", "ground_truth"),
        ),
        (
            '{"data_source": "x", "prompt": [{"role": "user", "content": "f"}], "ability": "code",'
            ' "reward_model": {"style": "rule", "ground_truth": "1"}}',
            ("row 1", "ground truth", "JSON object"),
        ),
    ],
)
def test_rows(
    line: str, words: tuple[str, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(line)
    config = merge(good(folder, tmp_path), {"data": {"train": [str(rows)]}})
    refused(["train", write(tmp_path / "run.yaml", config)], capsys, *words)
    assert not (tmp_path / "out").exists()


def test_output_folder_in_use(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "out" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    path = write(tmp_path / "run.yaml", good(folder, tmp_path))
    refused(["train", path], capsys, "output_dir", "--overwrite")
    refused(["train", path, "--overwrite"], capsys, "output_dir")  # no run made it
    assert kept.read_text() == "years of work"


def test_long_prompts_are_skipped_and_counted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over the limit is no error: counted in the metrics, never trained on."""
    rows = (folder / "prompts.jsonl").read_text().splitlines()
    long = json.loads(rows[0])
    long["prompt"][0]["content"] = "1+" * 30 + "1?"
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join([json.dumps(long), *rows[:4]]) + "\n")
    config = merge(good(folder, tmp_path), {"data": {"train": [str(data)], "max_prompt_tokens": 20}})
    assert main(["train", write(tmp_path / "run.yaml", merge(config, {"run": {"steps": 2}}))]) == 0
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["data/skipped_prompts"], last["data/rows"], last["data/left_out_rows"]) == (1, 4, 0)
    out = capsys.readouterr().out
    assert f"1 of 5 rows are skipped: 1 over data.max_prompt_tokens 20 (raise it); the first is {data}, row 1" in out


def test_rows_that_are_not_learned_are_told_and_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As rows of the data, however often the run meets them: one too long, one of weight 0, one with another column."""
    masked = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "3", "weight": 0}]
    rows = [{"prompt": "1+1?", "response": "2"}, {"prompt": "1+" * 30 + "1?", "response": "31"}, {"messages": masked}]
    rows.append({"prompt": "1+2?", "response": "3", "split": "train"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"output_dir": str(tmp_path / "out"), "steps": 3},
        "model": str(folder / "model"),
        "dtype": "float32",
        "batch_size": 2,
        "data": {"train": [str(data)], "max_tokens": 20},
        "checkpoint": {"save_final": False, "export_final": False},
        "log": {"tensorboard": False},
    }
    assert main(["sft", write(tmp_path / "sft.yaml", config)]) == 0
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [last[f"sft/{name}_rows"] for name in ("skipped", "masked")] == [1, 1] and last["sft/rows"] == 2
    out = capsys.readouterr().out
    assert "2 of 4 rows are skipped: 1 over data.max_tokens 20 (raise it), 1 of weight 0 alone" in out
    assert f"{data}: nothing reads 'split', which is left out (1 rows, the first is row 4)" in out
    assert "a response ends with '<eos>' (1: the chat template's end of turn" in out


def test_sft_rows(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1?"}\n')
    config = {
        "run": {"output_dir": str(tmp_path / "out"), "steps": 1},
        "model": str(folder / "model"),
        "dtype": "float32",
        "data": {"train": [str(rows)]},
    }
    refused(["sft", write(tmp_path / "sft.yaml", config)], capsys, "rows.jsonl", "row 1", "response")
    assert not (tmp_path / "out").exists()


def test_an_implementation_that_cannot_serve(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the config tells is refused by validate; that there is no GPU, where the run would be."""
    config = merge(good(folder, tmp_path), {"advantage": {"impl": "triton"}})
    uncovered = write(tmp_path / "uncovered.yaml", merge(config, {"prm": {"granularity": "step"}}))
    refused(["validate", uncovered], capsys, "advantage.impl", "prm.granularity step", "naive")
    refused(["train", write(tmp_path / "run.yaml", config)], capsys, "advantage.impl", "GPU", "torch")
    assert not (tmp_path / "out").exists()
