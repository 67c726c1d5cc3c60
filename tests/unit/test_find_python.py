"""tools/python.sh: which interpreter an environment is made with, and the one line where there is none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "python.sh"
SHIM = """\
#!/bin/sh
echo "pyenv: python3.12: command not found" >&2
echo "The \\`python3.12' command exists in these Python versions:" >&2
echo "  3.12.1" >&2
exit 127
"""


def interpreter(path: Path, version: str) -> None:
    """Something that says it is this Python."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\ncase "$1" in -c) echo {version};; *) echo Python {version}.9;; esac\n')
    path.chmod(0o755)


def call(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and error with nothing but the folder's interpreters."""
    environment = {"PATH": f"{folder}/bin:/usr/bin:/bin", "PYENV_ROOT": f"{folder}/pyenv", "MAKECMDGOALS": "test"}
    done = subprocess.run(
        ["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=30, env=os.environ | environment
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_pythons_with_wheels_are_taken(version: str, tmp_path: Path) -> None:
    interpreter(tmp_path / "bin" / "mine", version)
    assert call(tmp_path, "check", "mine") == (0, "", "")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("3.14", "mine is Python 3.14, for which megatron-core has no wheels"),
        ("3.10", "is needed; mine is Python 3.10"),
    ],
)
def test_others_are_refused_by_name(version: str, said: str, tmp_path: Path) -> None:
    interpreter(tmp_path / "bin" / "mine", version)
    code, _, error = call(tmp_path, "check", "mine")
    assert code == 2 and said in error and "\n" not in error
    assert "does not run" in call(tmp_path, "check", "nothing-of-that-name")[2]


def test_a_shim_of_a_version_that_is_not_selected_says_how_to_select_it(tmp_path: Path) -> None:
    interpreter(tmp_path / "bin" / "python3.12", "3.12")
    (tmp_path / "bin" / "python3.12").write_text(SHIM)
    code, _, error = call(tmp_path, "check", "python3.12")
    assert code == 2 and error.endswith("PYENV_VERSION=3.12.1 make test PYTHON=python3.12")


def test_an_interpreter_is_found_by_running_it(tmp_path: Path) -> None:
    """A shim answers to its name and does not run: then it is one of pyenv's versions."""
    shim, versions = tmp_path / "bin" / "python3.12", tmp_path / "pyenv" / "versions"
    interpreter(shim, "3.12")
    assert call(tmp_path, "find", "3.12") == (0, str(shim), "")
    shim.write_text(SHIM)
    interpreter(versions / "3.12.1" / "bin" / "python", "3.12")
    assert call(tmp_path, "find", "3.12") == (0, str(versions / "3.12.1" / "bin" / "python"), "")
    interpreter(tmp_path / "bin" / "mine", "3.11")
    assert call(tmp_path, "other", "mine")[1] == str(versions / "3.12.1" / "bin" / "python")
    (versions / "3.12.1" / "bin" / "python").unlink()
    code, out, error = call(tmp_path, "other", "mine")
    assert code == 2 and not out and error.startswith("error: NO PYTHON 3.12 HERE") and "\n" not in error


def test_an_environment_of_another_version_is_not_taken_for_this_one(tmp_path: Path) -> None:
    interpreter(tmp_path / "bin" / "mine", "3.12")
    assert call(tmp_path, "agrees", "mine", str(tmp_path / "env")) == (0, "", "")
    interpreter(tmp_path / "env" / "bin" / "python", "3.12")
    assert call(tmp_path, "agrees", "mine", str(tmp_path / "env")) == (0, "", "")
    interpreter(tmp_path / "env" / "bin" / "python", "3.11")
    code, _, error = call(tmp_path, "agrees", "mine", str(tmp_path / "env"))
    assert code == 2 and "env is of Python 3.11, mine is 3.12" in error
