"""Nothing of the user's is ever overwritten by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from prime_megatron.errors import InputError
from prime_megatron.run.output_dir import MARKER, check_inputs_outside, check_output_dir, own_output_dir


def prepare_output_dir(path: Path, *, resume: str | None, overwrite: bool) -> None:
    with own_output_dir(path, resume=resume, overwrite=overwrite):
        pass


def test_new_and_empty_folders_are_taken(tmp_path: Path) -> None:
    for path in (tmp_path / "a" / "b", tmp_path / "empty"):
        if path.name == "empty":
            path.mkdir()
        prepare_output_dir(path, resume=None, overwrite=False)
        assert [entry.name for entry in path.iterdir()] == [MARKER]


def test_full_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match=r"not empty.*--resume auto.*--overwrite"):
        prepare_output_dir(tmp_path, resume=None, overwrite=False)
    # Not made by a run: --overwrite does not help.
    with pytest.raises(InputError, match="not made by one"):
        prepare_output_dir(tmp_path, resume=None, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_overwrite_empties_what_a_run_made(tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    prepare_output_dir(out, resume=None, overwrite=False)
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "x").touch()
    (out / "metrics.jsonl").touch()
    (out / "link").symlink_to(outside)
    prepare_output_dir(out, resume=None, overwrite=True)
    assert [entry.name for entry in out.iterdir()] == [MARKER]
    assert (outside / "keep").exists()


def test_resume_keeps_everything(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("x")
    prepare_output_dir(tmp_path, resume="auto", overwrite=False)
    assert (tmp_path / "metrics.jsonl").read_text() == "x"


def test_contradictions_and_missing_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exclude each other"):
        check_output_dir(tmp_path, resume="auto", overwrite=True)
    with pytest.raises(InputError, match="no such folder"):
        check_output_dir(tmp_path, resume=str(tmp_path / "step_9"), overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        check_output_dir(tmp_path / "file", resume=None, overwrite=False)
    with pytest.raises(InputError, match="cannot write"):
        prepare_output_dir(tmp_path / "file" / "below", resume=None, overwrite=False)


def test_inputs_inside_the_output_folder_are_refused(tmp_path: Path) -> None:
    check_inputs_outside(tmp_path / "out", {"data.train[0]": str(tmp_path / "outer" / "a.jsonl")})
    with pytest.raises(InputError, match=r"data\.train\[0\]"):
        check_inputs_outside(tmp_path / "out", {"data.train[0]": str(tmp_path / "x" / ".." / "out" / "a.jsonl")})
