"""Every command of README and docs/ is run, here or by the test that its mark names, or says what it needs.

What is run here runs in a folder of its page, with the files that the page shows, and prints what the page shows.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prime_megatron.cli.main import VERBS, main
from prime_megatron.config.load import load_curate_config, load_score_config, load_stage_config, load_train_config
from prime_megatron.errors import InputError
from tests.support.doc_commands import COMMAND, NEEDS, ROOT, Block, blocks_of, outside_fences, pages, words_of
from tests.support.public_models import CONFIGS, make_folder
from tools.reference_verbs import parser_of

ALL = [block for page in pages() for block in blocks_of(page)]
SHELL = [block for block in ALL if block.language == "bash"]
RUN_HERE = [block for block in SHELL if block.mark("needs") is None and block.mark("run by") is None]
# They start processes of their own.
RUNS = ("train", "sft", "prm")
# What differs between two runs of one command: seconds, rates, times of the day, where the project lies.
VARIES = [
    (re.escape(str(ROOT)), "FOLDER"),
    (r"\d+(\.\d+)? s\b", "N s"),
    (r"\(\d+/s\)", "(N/s)"),
    (r"\d{4}-\d\d-\d\dT[\d:]+Z ", ""),
]


def test_marks_say_what_is_known() -> None:
    wrong = [f"{block.where}: needs {need}" for block in ALL if (need := block.mark("needs")) not in {None, *NEEDS}]
    wrong += [
        f"{block.where}: output {text}" for block in ALL if (text := block.mark("output")) not in (None, "varies")
    ]
    wrong += [
        f"{block.where}: a mark of commands above a block of {block.language or 'nothing'}"
        for block in ALL
        if block.language != "bash" and {"needs", "run by", "run with"} & dict(block.marks).keys()
    ]
    assert wrong == []


def test_commands_stand_in_bash_blocks() -> None:
    """A command in another block, or in an indented one, would be run by nobody."""
    wrong = [
        f"{block.where}: {line}"
        for block in ALL
        if block.language in ("", "text", "console", "sh", "shell")
        for line in block.text.splitlines()
        if COMMAND.match(line)
    ]
    for page in pages():
        wrong += [f"{page}:{n}: {line}" for n, line in outside_fences(page) if re.match(r"^(    |\t)\S", line)
                  and COMMAND.match(line.strip())]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("block", [b for b in SHELL if b.mark("run by")], ids=lambda block: block.where)
def test_the_named_test_runs_it(block: Block) -> None:
    path, _, name = str(block.mark("run by")).partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")
    assert not name or f"def {name}(" in source
    for command in block.commands():
        words = words_of(command)
        subject = next((word for word in words if word in VERBS or word.endswith((".py", ".yaml"))), None)
        if subject is not None:
            assert Path(subject).stem in source or subject.replace("-", "_") in source, f"{path} knows no {subject}"


@pytest.mark.parametrize("block", [b for b in SHELL if b not in RUN_HERE], ids=lambda block: block.where)
def test_what_a_command_names_is_there(block: Block) -> None:
    """Of the commands that are not run here: verbs, options, config keys, scripts, make's targets."""
    for command in block.simple_commands():
        check_words(words_of(command))


def test_what_prose_names_is_there() -> None:
    """Verbs, options and targets in the text of a page."""
    for page in pages():
        for _, line in outside_fences(page):
            for text in re.findall(r"`((?:prime-megatron|make) [^`]+)`", line):
                check_words(words_of(text.replace("...", "")), whole=False)


def check_words(words: list[str], *, whole: bool = True) -> None:
    """One command against the code; ``whole``: it could be typed as it stands."""
    if not words:
        return
    if words[0] == "make":
        check_targets(words[1:])
        return
    if words[0].endswith("python") or words[0].startswith("python"):
        words = words[3:] if words[1:3] == ["-m", "prime_megatron"] else words[1:]
        if words and words[0].endswith(".py"):
            assert (ROOT / words[0]).is_file(), words[0]
            return
        words = ["prime-megatron", *words] if words and words[0] in VERBS else []
    if words[:1] == ["prime-megatron"] and len(words) > 1 and not words[1].startswith("-"):
        check_verb(words[1], words[2:], whole=whole)


def check_targets(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        if "=" in word:
            assert re.search(rf"^{word.partition('=')[0]} \?=", makefile, re.M), word
        elif re.fullmatch(r"[a-z-]+", word):
            assert re.search(rf"^{word}:.*## ", makefile, re.M), f"make {word}"


def check_verb(verb: str, words: list[str], *, whole: bool) -> None:
    if not whole and not verb.islower():
        return  # `prime-megatron VERB --help`
    assert verb in VERBS, verb
    parser = parser_of(verb)
    if not whole:
        known = parser.format_help() + "".join(
            inner.format_help() for action in parser._actions if isinstance(action.choices, dict)
            for inner in action.choices.values()
        )  # fmt: skip
        assert all(word.split("=")[0] in known for word in words if word.startswith("--")), words
        return
    args, rest = parser.parse_known_args(words)
    stray = [word for word in rest if word.startswith("-") or "=" not in word]
    assert stray == [], f"{verb} does not know {stray}"
    check_keys(verb, args, rest)


def check_keys(verb: str, args: object, rest: list[str]) -> None:
    """Every `key=value` is one of the config's, and an example's file is there."""
    path = str(getattr(args, "config", None) or "")
    overrides = [*getattr(args, "overrides", []), *rest]
    if verb in ("score", "process-bench"):
        load_score_config(overrides)
    elif verb == "curate":
        load_curate_config(None, [word for word in [*getattr(args, "words", []), *rest] if "=" in word])
    elif path:
        file = ROOT / path if path.startswith("examples/") else ROOT / "examples" / "quickstart" / "prime.yaml"
        if verb in ("sft", "prm") and not path.startswith("examples/"):
            return
        if load_stage_config(str(file), []) is None:
            load_train_config(str(file), overrides)
        else:
            load_stage_config(str(file), overrides)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's commands run: the examples, and public models' config.json below models/."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    for name in CONFIGS:
        make_folder(tmp_path / "models", name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


@pytest.mark.parametrize("page", sorted({block.page for block in RUN_HERE}))
def test_commands_run_and_print_what_the_page_shows(page: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    printed = ""
    for block in blocks_of(page):
        if block.title is not None:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text + "\n", encoding="utf-8")
        elif block in RUN_HERE:
            printed = "".join(outputs(block, capfd))
        elif block.language == "text" and printed and block.mark("output") is None:
            compare(printed, block)
        if block.language != "bash" or block not in RUN_HERE:
            printed = printed if block.title else ""


def outputs(block: Block, capfd: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Run a block; what each command prints, standard error last. A refusal that the page shows is no failure."""
    for command in block.commands():
        words = words_of(command)
        short = words[0] == "prime-megatron" and words[1] in RUNS
        plain = words[0] == "prime-megatron" and not short and not re.search(r"[|<>;&]", command)
        whole = f"{command} {block.mark('run with')}" if short else command
        code = in_process(words[1:]) if plain else subprocess.run(["bash", "-c", whole]).returncode
        told = capfd.readouterr()
        assert code == 0 or (code == 2 and "error: " in told.err), f"{block.where}: {command}\n{told.err}{told.out}"
        yield told.out + told.err


def in_process(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


def compare(printed: str, block: Block) -> None:
    """The lines that a page shows are those that were printed, in this order; `...` stands for any lines."""
    shown = [plain(line) for line in block.text.splitlines()]
    lines = iter([plain(line) for line in printed.splitlines()])
    gap = True
    for line in shown:
        if line.strip() == "...":
            gap = True
            continue
        found = next((other for other in lines if not gap or other == line), None) if gap else next(lines, None)
        assert found == line, f"{block.where}: shown\n  {line}\nprinted\n{printed}"
        gap = False


def plain(line: str) -> str:
    for pattern, text in VARIES:
        line = re.sub(pattern, text, line)
    return line.rstrip()


def test_a_page_that_shows_another_output_is_told() -> None:
    block = Block("x.md", 1, "text", None, (), "a 1.5 s\n...\nd")
    compare("a 7 s\nb\nc\nd\n", block)
    for printed in ("a 7 s\nb\nc\n", "b\nd\n"):
        with pytest.raises(AssertionError, match=r"x\.md:1: shown"):
            compare(printed, block)


def test_wrong_commands_are_told() -> None:
    for command in ("prime-megatron trian x.yaml", "prime-megatron validate examples/quickstart/prime.yaml run.sed=1",
                    "make quickstat", "python tools/nothing.py", "make test SED=1"):  # fmt: skip
        with pytest.raises((AssertionError, InputError)):
            check_words(shlex.split(command))
