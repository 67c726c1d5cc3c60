"""What goes wrong on a cluster, done to a real run: killed, signalled, damaged, full, not a number, stalled.

After each the next attempt ends where the undisturbed run ends, to the last bit, or one clear line says why not.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prime_megatron.errors import ExitCode
from tests.support.resume_runs import assert_same, at, outcome, said, toy, train

STEP = 3
"""The step in which things go wrong; steps 1 and 2 are saved by then."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The undisturbed run on two data-parallel ranks: (settings, outcome)."""
    folder = tmp_path_factory.mktemp("faults")
    config = toy(folder)
    assert train(config, 2) == {0}
    return config, outcome(folder / "straight")


def in_stage(stage: str, act: Callable[[], None], rank: int = 1) -> None:
    """Act when a rank enters a stage of the fatal step."""
    from prime_megatron.trainer import PrimeTrainer

    if int(os.environ["RANK"]) != rank:
        return
    step = PrimeTrainer.step

    def watched(self: Any, index: int) -> Any:
        if index == STEP:
            enter = self.parts.clock._on_stage

            def on_stage(name: str) -> None:
                enter(name)
                if name == stage:
                    act()

            self.parts.clock._on_stage = on_stage
        return step(self, index)

    PrimeTrainer.step = watched


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def usr1() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def in_save(act: Callable[[], None], rank: int = 1) -> None:
    """Act when a rank is about to write its shards of the fatal step."""
    from prime_megatron.checkpoint.save import Save

    write = Save._write_one

    def watched(self: Any, name: str) -> Any:
        if self.step == STEP and int(os.environ["RANK"]) == rank and not self._written:
            act()
        return write(self, name)

    Save._write_one = watched


@pytest.mark.parametrize("stage", ["rollout", "prm", "policy", "mid-save"])
def test_killed_rank(straight: Any, stage: str, tmp_path: Path) -> None:
    base, expected = straight
    config = at(base, tmp_path / "out")
    fault = functools.partial(in_save, kill) if stage == "mid-save" else functools.partial(in_stage, stage, kill)
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        train(config, 2, fault=fault)
    assert time.monotonic() - began < 60.0 + 60.0, "the other rank did not end within the timeout"
    assert not (tmp_path / "out" / "checkpoints" / "step-00000003").exists()
    assert train(config, 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


@pytest.mark.parametrize("act", [pytest.param(term, marks=pytest.mark.slow), usr1])
@pytest.mark.parametrize("stage", ["rollout", "score", "prm", "policy", "mid-save"])
def test_stop_signal(straight: Any, stage: str, act: Callable[[], None], tmp_path: Path) -> None:
    """One rank alone gets the signal; all stop, with the last finished step saved though none was due."""
    base, expected = straight
    saves = {"every": 3 if stage == "mid-save" else 0}
    config = at(base, tmp_path / "out", checkpoint=saves)
    fault = functools.partial(in_save, act) if stage == "mid-save" else functools.partial(in_stage, stage, act)
    assert train(config, 2, fault=fault) == {ExitCode.REQUEUE}
    saved = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert saved == ["step-00000002" if stage == "rollout" else "step-00000003"]
    assert train(config, 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def at_step_three(base: dict[str, Any], output: Path, **sections: Any) -> tuple[dict[str, Any], Path]:
    """What the undisturbed run had when step 3 was saved: (settings, the newest checkpoint)."""
    config = at(base, output, **sections)
    straight = Path(base["run"]["output_dir"])
    for step in (1, 2, 3):
        name = f"step-{step:08d}"
        shutil.copytree(straight / "checkpoints" / name, output / "checkpoints" / name)
    for log in ("metrics.jsonl", "samples.jsonl"):
        shutil.copy(straight / log, output / log)
    return config, output / "checkpoints" / "step-00000003"


def truncate(path: Path) -> None:
    shard = next((path / "policy").glob("*.distcp"))
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)


def flip_a_byte(path: Path) -> None:
    shard = next((path / "prm").glob("*.distcp"))
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def lose_the_marker(path: Path) -> None:
    (path / "COMPLETE").unlink()


def lose_a_file(path: Path) -> None:
    (path / "state.json").unlink()


def point_to_nowhere(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path.parent / "gone", target_is_directory=True)


DAMAGES = {
    truncate: "cut to",
    flip_a_byte: "sha256 differs",
    lose_the_marker: "never finished",
    lose_a_file: "lacks state.json",
    point_to_nowhere: "is a link to",
}


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_damaged_checkpoint(straight: Any, harm: Any, tmp_path: Path) -> None:
    base, expected = straight
    config, newest = at_step_three(base, tmp_path / "out")
    harm(newest)
    refusal = "no such folder" if harm is point_to_nowhere else DAMAGES[harm]
    with pytest.raises(RuntimeError, match=f"InputError: --resume {newest}.*{refusal}"):
        train(config, 2, resume=str(newest))
    assert train(config, 2, resume="auto") == {0}
    text = said(tmp_path / "out")
    assert f"warning: {newest} " in text and DAMAGES[harm] in text, "the damaged checkpoint was not named"
    assert "resumed after step 2" in text
    assert_same(outcome(tmp_path / "out"), expected)


def test_nothing_whole_is_no_fresh_start(straight: Any, tmp_path: Path) -> None:
    base, _ = straight
    config, newest = at_step_three(base, tmp_path / "out")
    for path in newest.parent.iterdir():
        lose_a_file(path)
    with pytest.raises(RuntimeError, match=r"InputError: --resume auto: no checkpoint in .* is whole"):
        train(config, 2, resume="auto")


def no_room(limit_bytes: int) -> None:
    """Files of this process end at a size, as on a full disk: writing beyond it is an OSError."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))

    in_save(limit, rank=0)


@pytest.mark.parametrize("last", [False, True], ids=["periodic", "last"])
def test_a_save_that_fails(straight: Any, last: bool, tmp_path: Path) -> None:
    """A periodic save that fails is a warning; the last one ends the run with one line. Older ones are untouched."""
    base, expected = straight
    config = at(base, tmp_path / "out", checkpoint={"export_final": False, "save_final": last})
    fault = functools.partial(no_room, 150_000)
    if last:
        with pytest.raises(RuntimeError, match=r"RunError: .*step 4 could not be saved.*newest checkpoint is that of"):
            train(config, 2, fault=fault)
    else:
        assert train(config, 2, fault=fault) == {0}
        assert "could not be saved" in said(tmp_path / "out")
    checkpoints = tmp_path / "out" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000001", "step-00000002"]
    resumed = at(config, tmp_path / "out", checkpoint={"export_final": True})
    assert train(resumed, 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def test_full_disk(straight: Any, tmp_path: Path) -> None:
    """A file system with room for two checkpoints and a half: asked before anything is written."""
    import subprocess

    base, _ = straight
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in (Path(base["run"]["output_dir"]) / "checkpoints").rglob("*")) // 4
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(2.6 * size)}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root; test_a_save_that_fails covers the rest")
    try:
        config = at(base, disk / "out", checkpoint={"export_final": False, "save_final": False})
        assert train(config, 2) == {0}
        text = said(disk / "out")
        assert "step 3 could not be saved" in text and "bytes are free" in text
        assert sorted(path.name for path in (disk / "out" / "checkpoints").iterdir()) == [
            "step-00000001",
            "step-00000002",
        ]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def poison(method: str, steps: tuple[int, ...]) -> None:
    """In these steps one rank's gradients are not numbers."""
    from prime_megatron.trainer import PrimeTrainer

    if os.environ["RANK"] != "1":
        return
    update = getattr(PrimeTrainer, method)

    def poisoned(self: Any, *args: Any, **options: Any) -> Any:
        role = self.parts.roles.policy if method == "update_policy" else self.parts.roles.prm
        if self.version + 1 not in steps:
            return update(self, *args, **options)
        step = role.optimizer.step

        def bad_step(fine: bool, memory: Any) -> Any:
            assert fine
            if role.name == "policy":
                return step(False, memory)  # as after a loss that is not finite
            for chunk in role.chunks:
                next(chunk.parameters()).main_grad.fill_(float("nan"))
            return step(fine, memory)

        role.optimizer.step = bad_step
        try:
            return update(self, *args, **options)
        finally:
            del role.optimizer.step

    setattr(PrimeTrainer, method, poisoned)


@pytest.mark.parametrize(("role", "method"), [("policy", "update_policy"), ("prm", "update_prm")])
def test_not_a_number(straight: Any, role: str, method: str, tmp_path: Path) -> None:
    """Skipped by all ranks, counted for its role only, dumped; too many in a row end the run; a resume goes on."""
    base, expected = straight
    config = at(base, tmp_path / "out")
    updates = {"policy": 2, "prm": 1}[role]
    assert train(config, 2, fault=functools.partial(poison, method, (2,))) == {0}
    result = outcome(tmp_path / "out")
    skipped = [row[f"{role}/skipped_updates"] for row in result["metrics"][1:]]
    assert skipped == [0, updates, 0, 0]
    other = {"policy": "prm", "prm": "policy"}[role]
    assert all(row[f"{other}/skipped_updates"] == 0 for row in result["metrics"][1:])
    assert all(torch.isfinite(tensor).all() for tensor in result["models"].values())
    assert result["metrics"][:2] == expected["metrics"][:2]
    dumped = sorted(path.name for path in (tmp_path / "out" / "nonfinite").iterdir())
    assert dumped == [f"step-00000002-{role}-rank-0000{rank}.safetensors" for rank in (0, 1)]

    again = at(base, tmp_path / "again", run={"max_nonfinite": 2 * updates})
    with pytest.raises(
        RuntimeError, match=f"RunEnded: step 3: {role}: {2 * updates} updates in a row .*step 3 is saved"
    ):
        train(again, 2, fault=functools.partial(poison, method, (2, 3)))
    for step in (2, 3):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-0000000{step}")
    assert train(again, 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "again"), expected)


def hang() -> None:
    time.sleep(1000)


def test_a_stall_writes_every_stack(straight: Any, tmp_path: Path) -> None:
    base, expected = straight
    config = at(base, tmp_path / "out", run={"stall_timeout_s": 10.0})
    with pytest.raises(RuntimeError):
        train(config, 2, fault=functools.partial(in_stage, "score", hang))
    stacks = [(tmp_path / "out" / "stalls" / f"rank-0000{rank}.txt").read_text() for rank in (0, 1)]
    # The other rank waits for it where the ranks next meet.
    assert "stage score" in stacks[1] and all("in step" in text for text in stacks)
    assert "in hang" in stacks[1] and "in hang" not in stacks[0]
    assert train(config, 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def test_grace_time(straight: Any, tmp_path: Path) -> None:
    """A step that does not finish in time is given up: the requeue code, and the newest checkpoint is what remains."""
    base, expected = straight
    config = at(base, tmp_path / "out", checkpoint={"grace_s": 2.0})
    with pytest.raises(RuntimeError, match="died without a word"):
        train(config, 2, fault=functools.partial(in_stage, "prm", term_and_hang))
    assert "checkpoint.grace_s" in said(tmp_path / "out")
    assert train(config, 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def term_and_hang() -> None:
    term()
    hang()


def test_wall_limit(straight: Any, tmp_path: Path) -> None:
    base, expected = straight
    config = at(base, tmp_path / "out", checkpoint={"wall_limit_s": 0.1})
    assert train(config, 2) == {ExitCode.REQUEUE}
    assert not (tmp_path / "out" / "checkpoints").exists(), "the limit came before the first step"
    assert train(at(base, tmp_path / "out"), 2, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("run", "seed", 7), ("prm", "beta", 0.1), ("rollout", "samples_per_prompt", 3), ("data", "shuffle", False)],
)
def test_another_meaning_is_refused(straight: Any, section: str, key: str, value: Any, tmp_path: Path) -> None:
    base, _ = straight
    config, _ = at_step_three(base, tmp_path / "out", **{section: {key: value}})
    with pytest.raises(RuntimeError, match=rf"(?s)InputError: --resume: .*  {section}.{key}: \S+ -> {value!r}"):
        train(config, 1, resume="auto")
