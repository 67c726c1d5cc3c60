"""Which releases of megatron-core are tested, what another one is told, and which of them a fix applies to."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from prime_megatron.errors import InputError
from prime_megatron.mcore import versions
from prime_megatron.mcore.fixes import FIXES, Fix

ROOT = Path(__file__).parents[2]


def test_gate() -> None:
    fix = Fix("x", "0.16", "0.20", lambda: None)
    assert [fix.needed(Version(v)) for v in ("0.15.3", "0.16.0", "0.16.1", "0.19.2", "0.20.0")] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert Fix("x", "0.16", None, lambda: None).needed(Version("1.0"))


def test_every_fix_has_a_regression_test() -> None:
    assert len({fix.name for fix in FIXES}) == len(FIXES) == 5
    assert [fix.name for fix in FIXES if not fix.needed(Version("0.19.2"))] == ["moe router without Transformer Engine"]


@pytest.mark.parametrize("found", ["0.17.1", "0.18.2", "0.16.0", "0.19.0", "0.20.0"])
def test_an_untested_release_is_refused_in_one_line(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(versions.UNTESTED_VARIABLE, raising=False)
    monkeypatch.setattr(versions, "version", lambda name: found)
    with pytest.raises(InputError, match=rf"^megatron-core {found} was not tested") as refusal:
        versions.require_tested()
    assert all(f"{release} on Python" in str(refusal.value) for release in versions.TESTED)
    assert "\n" not in str(refusal.value) and f"{versions.UNTESTED_VARIABLE}=1" in str(refusal.value)
    monkeypatch.setenv(versions.UNTESTED_VARIABLE, "1")
    versions.require_tested()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "0.19.2")
    monkeypatch.setattr(versions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="imports triton on every machine"):
        versions.require_tested()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    with pytest.raises(InputError, match=r"is not installed: pip install megatron-core==0\."):
        versions.require_tested()


def pinned(text: str, python: str) -> dict[str, str]:
    """Package -> version of the pins that hold on a Python."""
    lines = [line for line in text.splitlines() if re.match(r"[a-zA-Z]", line)]
    here = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64"}
    wanted = [Requirement(line) for line in lines]
    return {one.name: str(one.specifier) for one in wanted if one.marker is None or one.marker.evaluate(here)}


def test_tested_releases_are_those_of_the_requirements() -> None:
    """And setup.py asks for the same, on the same Pythons."""
    setup = (ROOT / "setup.py").read_text()
    asked = "\n".join(re.findall(r'"(megatron-core==[^"]+)"', setup))
    for release, pythons in versions.TESTED.items():
        for python in pythons:
            for text in ((ROOT / "requirements" / "run.txt").read_text(), asked):
                assert pinned(text, python)["megatron-core"] == f"=={release}"
    newest = max(int(python.split(".")[1]) for pythons in versions.TESTED.values() for python in pythons)
    assert f'python_requires=">=3.11,<3.{newest + 1}"' in setup
