"""Hostile and odd config files end in a line, soon and in little memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from prime_megatron.config.load import load_train_config
from prime_megatron.errors import InputError

BASE = "run: {output_dir: out, steps: 3}\nmodels: {policy: {path: m}}\ndata: {train: [a.jsonl]}\n"
BOMB = "x0: &x0 [a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "y0: &y0 {a: 1}\n" + "".join(f"y{i}: &y{i} {{<<: [{', '.join([f'*y{i - 1}'] * 9)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, ":4: more than 20000 values"),
        (MERGES, "more than 20000 values"),
        ("x: " + "[" * 5000 + "]" * 5000, ":4: not valid YAML: lists and sections are nested more than 32 deep"),
        ("x: " + "{a: " * 5000 + "}" * 5000, "nested more than 32 deep"),
        ("\n".join(" " * depth + "a:" for depth in range(600)), "nested more than 32 deep"),
        ("a: &a [*a]", "an anchor contains itself"),
        ("x: [" + "a, " * 80_000 + "]", "more than 20000 values"),
        ("# " + "c" * 300_000, "bytes are more than"),
        ("x: " + "9" * 5000, "is beyond 64 bits"),
        ("x: " + "9" * 5000 + ".0", "is beyond the largest number"),
        ('x: "\\ud800"', "is no text that UTF-8 can write"),
        ('"\\ud800": 1', "is no text that UTF-8 can write"),
        ("".join(f"k{i}: {i}\n" for i in range(5000)), "and 4995 more in"),
        ("x: !!python/object/apply:os.system [a]", "tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("x: " + "k" * 100_000, "unknown key x"),
        ("k" * 100_000 + ": 1", "not valid YAML"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(BASE + text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as refused:
        load_train_config(str(tmp_path / "run.yaml"), [])
    assert said in str(refused.value)
    assert len(str(refused.value)) < 2500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024, "more than 400 MiB"


def test_a_file_of_a_hundred_megabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "run.yaml").open("wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(InputError, match=r"run\.yaml: 100000000 bytes are more than the 262144 that are read"):
        load_train_config(str(tmp_path / "run.yaml"), [])


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(InputError, match="not a regular file"):
            load_train_config(path, [])


@pytest.mark.parametrize("override", ["run.name={a: [" + "[" * 3000 + "]" * 3000 + "]}", "run.steps=" + "9" * 5000,
                                      "run.seed=18446744073709551616", "models.policy.optimizer.betas=[0.9, 1.0]",
                                      "models.policy.optimizer.betas=[-0.1, 0.9]", "launch.processes_per_node=100000",
                                      "parallel.timeout_s=1e300", "run.seed=9223372036854775808"])  # fmt: skip
def test_an_override_out_of_bounds_is_one_line(override: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(BASE)
    with pytest.raises(InputError, match=r"^override [^\n]*$"):
        load_train_config(str(tmp_path / "run.yaml"), [override])
