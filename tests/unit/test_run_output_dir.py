"""Nothing of the user's is ever overwritten by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prime_megatron.errors import InputError
from prime_megatron.run.output_dir import (
    DONE_FILE,
    MARKER,
    check_inputs_outside,
    check_output_dir,
    is_done,
    own_output_dir,
)


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


def test_a_start_that_failed_does_not_stand_in_the_next_ones_way(tmp_path: Path) -> None:
    """An engine that is not installed: its log and the run's marker are all that is there."""
    prepare_output_dir(tmp_path, resume=None, overwrite=False)
    for name in ("engine-0.log", "status.json", "events.jsonl"):
        (tmp_path / name).write_text("x")
    prepare_output_dir(tmp_path, resume=None, overwrite=False)
    assert (tmp_path / "engine-0.log").read_text() == "x"
    (tmp_path / "metrics.jsonl").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        prepare_output_dir(tmp_path, resume=None, overwrite=False)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / MARKER).unlink()
    with pytest.raises(InputError, match="not empty"):
        prepare_output_dir(tmp_path, resume=None, overwrite=False)


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
    assert {entry.name for entry in out.iterdir()} == {MARKER, "checkpoints", "link"}
    assert (out / "checkpoints" / "x").exists() and (outside / "keep").exists()


def test_resume_keeps_everything(tmp_path: Path) -> None:
    prepare_output_dir(tmp_path, resume=None, overwrite=False)
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


WRITTEN = (
    "checkpoints/step-00000001/COMPLETE", "checkpoints/.tmp-step-00000002/state.json", "metrics.jsonl", "memory.jsonl",
    "events.jsonl", "status.json", "wandb_id.txt", "mlflow_run_id.txt", "mlflow/mlflow.db", "trace/trace.json",
    "samples.jsonl", "summary.json", "tensorboard/events.out.tfevents.1.host", "policy/config.json", "prm/config.json",
    "model/config.json", "nonfinite/step-00000001-policy-rank-00000.safetensors", "stalls/rank-0.txt",
    "engine-0.log", "logs/job-1-attempt-0/node-0.log", "logs/attempts.jsonl", ".policy.partial/config.json",
    "prime-engine-a1b2/config.json", "wandb/run/files",
)  # fmt: skip
KEPT = (
    "thesis.txt", "notes/a.md", "checkpoints/mine.pt", "checkpoints/step-final/x", "tensorboard/comparison.png",
    "logs/notes.txt", "metrics.jsonl.bak", "policy-v1/config.json", "engine.log", "config.yaml", ".git/HEAD",
)  # fmt: skip


def put(out: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)


def files_in(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_overwrite_deletes_what_a_run_wrote_by_name_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_output_dir(out, resume=None, overwrite=False)
    put(out, WRITTEN + KEPT)
    prepare_output_dir(out, resume=None, overwrite=True)
    assert files_in(out) == {MARKER, *KEPT}


def test_overwrite_takes_links_away_and_not_what_they_lead_to(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    put(mine, ("policy/config.json", "summary.json", "step/state.json"))
    prepare_output_dir(out, resume=None, overwrite=False)
    (out / "policy").symlink_to(mine / "policy")
    (out / "summary.json").symlink_to(mine / "summary.json")
    (out / "checkpoints").mkdir()
    (out / "checkpoints" / "step-00000001").symlink_to(mine / "step")
    prepare_output_dir(out, resume=None, overwrite=True)
    assert files_in(out) == {MARKER} and not (out / "policy").is_symlink()
    assert files_in(mine) == {"policy/config.json", "summary.json", "step/state.json"}


@pytest.mark.parametrize("resume", ["auto", "named"])
@pytest.mark.parametrize(
    "names", [("thesis.txt",), ("policy/config.json",), ("metrics.jsonl",), ("checkpoints/mine.pt",), (*WRITTEN, "a")]
)
def test_a_resume_makes_no_run_of_a_users_folder(names: tuple[str, ...], resume: str, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "out", tmp_path / "step-00000001"
    checkpoint.mkdir()
    put(out, names)
    with pytest.raises(InputError, match="was not made by a run"):
        prepare_output_dir(out, resume="auto" if resume == "auto" else str(checkpoint), overwrite=False)
    assert files_in(out) == set(names)
    with pytest.raises(InputError, match="not made by one"):
        prepare_output_dir(out, resume=None, overwrite=True)
    assert files_in(out) == set(names)


def test_a_resume_goes_on_in_a_runs_folder(tmp_path: Path) -> None:
    """One that was copied without its marker, too, and one that a job made for its logs."""
    for number, names in enumerate([WRITTEN, ("logs/job-1-attempt-0/node-0.log",), ()]):
        out = tmp_path / str(number)
        out.mkdir()
        put(out, names)
        prepare_output_dir(out, resume="auto", overwrite=False)
        assert files_in(out) == {MARKER, *names}


def test_a_pipe_where_a_run_writes_is_refused(tmp_path: Path) -> None:
    prepare_output_dir(tmp_path, resume=None, overwrite=False)
    os.mkfifo(tmp_path / "metrics.jsonl")
    for resume, overwrite in (("auto", False), (None, True)):
        with pytest.raises(InputError, match=r"metrics\.jsonl is a pipe or a device"):
            prepare_output_dir(tmp_path, resume=resume, overwrite=overwrite)
    assert (tmp_path / "metrics.jsonl").is_fifo()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps": "x", "exported": 1}', "[" * 3000, "\x00"])
def test_a_damaged_note_of_the_end_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / DONE_FILE).write_text(text)
    assert not is_done(tmp_path, steps=1, export=False)
