"""tools/engine_env/make_env.py: where packages come from, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "engine_env" / "make_env.py"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_uv(folder: Path, complaint: str) -> str:
    """Writes its arguments to `calls`, one call a line; without the index of torch it fails with the complaint."""
    path = folder / "uv"
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/calls\ncase "$*" in *pytorch.org*) exit 0;; esac\n'
        f"echo '{complaint}' >&2\nexit 1\n"
    )
    path.chmod(0o755)
    return str(path)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_the_locks_are_pins_of_cpu_builds(engine: str) -> None:
    lines = (TOOL.parent / f"{engine}.lock").read_text().splitlines()
    assert all("==" in line for line in lines)
    assert [line for line in lines if line.startswith("torch==")] == ["torch==2.13.0+cpu"]
    assert not [line for line in lines if line.startswith("nvidia-c") or "cuda" in line]


def test_torch_is_looked_for_at_its_own_index_when_pips_sources_lack_it(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    tool.install("vllm", fake_uv(tmp_path, "no version of torch==2.13.0+cpu"), sys.executable)
    first, second = calls(tmp_path)
    assert "--no-deps" in first
    assert "--find-links /one --find-links /two" in first
    assert tool.TORCH_INDEX not in first
    assert second.endswith(f"--extra-index-url {tool.TORCH_INDEX}")


def test_other_failures_and_machines_without_indexes_fail_at_once(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(tool.EnvError, match="installing the packages of vllm failed: disk full"):
        tool.install("vllm", fake_uv(tmp_path, "disk full"), sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(tool.EnvError, match="no version of torch"):
        tool.install("vllm", fake_uv(tmp_path, "no version of torch"), sys.executable)
    assert len(calls(tmp_path)) == 2


def test_a_complete_environment_is_left_alone_and_a_folder_of_something_else_too(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = tmp_path / "complete"
    complete.mkdir()
    (complete / tool.STAMP).write_text(tool.digest("vllm"))
    tool.make("vllm", complete)
    assert "already complete for vllm" in capsys.readouterr().out
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(tool.EnvError, match="is no virtual environment"):
        tool.make("vllm", other)
    assert (other / "thesis.tex").exists()


def test_another_python_looks_for_the_one_of_the_pins(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "PYTHON", (3, 5))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(tool.EnvError, match=r"the pins are for Python 3\.5, .*: install python3\.5"):
        tool.find_python()
    (tmp_path / "python3.5").write_text("")
    (tmp_path / "python3.5").chmod(0o755)
    assert tool.find_python() == str(tmp_path / "python3.5")


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(TOOL), "vllm"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "make_env: name the directory of the environment\n"
