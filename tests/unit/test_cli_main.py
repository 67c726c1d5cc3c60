"""The command line: verbs, help, exit codes."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prime_megatron.cli import main as cli
from prime_megatron.errors import InputError, RunError


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian", "x.yaml"], "error: unknown verb 'trian'; did you mean train?"),
        (
            ["zzz"],
            "error: unknown verb 'zzz'; choose one of train, sft, watch, curate, generate, evaluate, compare, prm",
        ),
    ],
)
def test_unknown_verb_is_one_line_and_exit_code_2(argv: list[str], line: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.strip().startswith(line)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("argv", [[], ["train"], ["train", "x.yaml", "--resum", "auto"], ["verify", "a.jsonl"]])
def test_wrong_usage_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert "usage: prime-megatron" in capsys.readouterr().err


def test_help_lists_every_verb_and_each_verb_has_examples(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {verb}\s", text, re.MULTILINE) for verb in cli.VERBS)
    for verb in ("train", "sft", "validate", "plan-step"):
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        assert f"prime-megatron {verb} " in capsys.readouterr().out


def test_overrides_and_options_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    module = importlib.import_module("prime_megatron.cli.train")
    monkeypatch.setattr(module, "run", lambda args: seen.append(args) or 0)
    assert cli.main(["train", "c.yaml", "run.steps=1", "--resume", "auto", "run.seed=2", "run.steps=1"]) == 0
    assert (seen[0].config, seen[0].resume) == ("c.yaml", "auto")
    assert seen[0].overrides == ["run.steps=1", "run.seed=2", "run.steps=1"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("run.yaml:3: a\nrun.yaml:4: b"), 2, "error: run.yaml:3: a\nerror: run.yaml:4: b\n"),
        (RunError("starved"), 1, "error: starved\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_lines_and_codes(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(args: object) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("prime_megatron.cli.train"), "run", run)
    assert cli.main(["train", "c.yaml"]) == code
    assert capsys.readouterr().err == text


def test_module_and_script_pass_the_exit_code_on() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prime_megatron", "tran"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown verb 'tran'; did you mean train?\n"


def test_no_option_is_ever_abbreviated() -> None:
    """In the command line and in every tool: --over would be --overwrite."""
    root = Path(__file__).parents[2]
    found = []
    for path in sorted([*(root / "prime_megatron").rglob("*.py"), *(root / "tools").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            module = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call)
            if name in ("ArgumentParser", "add_parser") and not module:
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if given.get("allow_abbrev", "") != "False":
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("verb", ["train", "sft", "verify", "slurm", "validate"])
def test_an_abbreviated_option_is_unknown(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"train": "--resum=auto", "sft": "--overw", "verify": "--overw", "slurm": "--dry", "validate": "--proc=2"}
    needed = ["a.jsonl", "--output", "b.jsonl"] if verb == "verify" else ["a.yaml"]
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, *needed, short[verb]])
    assert ended.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err
