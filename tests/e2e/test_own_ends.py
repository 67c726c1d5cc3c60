"""Ends that the run decides itself: what was learned is saved first, and the resumed run is the undisturbed one."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prime_megatron.errors import Diverged, ExitCode, InputError, PeerLost, RunEnded, RunError
from prime_megatron.run.ending import Ending
from tests.support.ranks import run_ranks
from tests.support.resume_runs import assert_same, at, no_fault, outcome, toy, train
from tests.support.runs import read_lines
from tests.support.sft_runs import outcome as sft_outcome
from tests.support.sft_runs import sft_config


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The undisturbed run on two data-parallel ranks, with an evaluation after step 2: (settings, outcome)."""
    folder = tmp_path_factory.mktemp("ends")
    base = toy(folder, run={"steps": 6}, checkpoint={"every": 0}, eval={"every": 2, "max_prompts": 4})
    config = at(base, folder / "straight", data={"eval": base["data"]["train"]})
    assert train(config, 2) == {0}
    return config, outcome(folder / "straight")


def on_rank(rank: int) -> bool:
    return int(os.environ["RANK"]) == rank


def before_step(index: int, act: Callable[[Any], None]) -> None:
    """Act on the trainer when a step begins."""
    from prime_megatron.trainer import PrimeTrainer

    step = PrimeTrainer.step

    def watched(self: Any, number: int) -> Any:
        if number == index:
            act(self)
        return step(self, number)

    PrimeTrainer.step = watched


def nothing_passes(step: int, passing: int = 0) -> None:
    """From a step on the filter keeps only so many groups, on all ranks."""
    from prime_megatron.algo.filtering import FilterReason, FilterVerdict
    from prime_megatron.rollout import collect

    keep, kept = collect.keep_group, []

    def choosy(self: Any) -> None:
        def judged(group: Any, config: Any) -> FilterVerdict:
            if len(kept) < passing:
                kept.append(group)
                return keep(group, config)
            return FilterVerdict(False, FilterReason.too_hard)

        collect.keep_group = judged

    before_step(step, choosy)


def engine_gone_in_rollout(step: int) -> None:
    """One rank's engine cannot answer any more in the rollout of a step."""
    if not on_rank(1):
        return

    def lose(self: Any) -> None:
        def gone(*_: object) -> None:
            raise RunError("rollout engine 1: it was started 3 times in a row (rollout.max_restarts)")

        self.parts.engine.engine.generate = gone

    before_step(step, lose)


def engine_gone_in_sync(step: int) -> None:
    """One rank's engine dies for good as it takes the weights of a step: its evaluation is the first to know."""
    if not on_rank(1):
        return

    def lose(self: Any) -> None:
        def gone(*_: object) -> None:
            raise RunError("rollout engine 1: it was started 3 times in a row (rollout.max_restarts)")

        self.parts.engine.engine.update_weights = gone

    before_step(step, lose)


def wrong_weights(step: int) -> None:
    """One rank's sync of a step finds other weights in its engine."""
    if not on_rank(1):
        return

    def spoil(self: Any) -> None:
        self.parts.colocation.sync.reshard.differing = lambda *_: ["model.norm.weight"]

    before_step(step, spoil)


def verifiers_gone(step: int) -> None:
    """One rank's verifiers cannot be started any more."""
    if not on_rank(1):
        return

    def lose(self: Any) -> None:
        def submit(answer: object) -> Future[Any]:
            failed: Future[Any] = Future()
            failed.set_exception(RunError("the math verifier cannot start: no memory"))
            return failed

        self.parts.collector.generator.verifiers = SimpleNamespace(submit=submit)

    before_step(step, lose)


def no_room_for(name: str, step: int) -> None:
    """The first rank's log finds no room when it tells of a step."""
    if not on_rank(0):
        return

    def fill(self: Any) -> None:
        from prime_megatron.metrics.jsonl import JsonlFile

        write = JsonlFile.write

        def full(file: Any, lines: str) -> None:
            if file.path.name == name:
                file._file = Path("/dev/full").open("a")  # noqa: SIM115
            write(file, lines)

        JsonlFile.write = full

    before_step(step, fill)


ENDS: tuple[tuple[Callable[[], None], int, str], ...] = (
    (functools.partial(nothing_passes, 2), 1, "step 2: .*"),
    (functools.partial(engine_gone_in_sync, 2), 2, "rollout engine 1: .*max_restarts.*"),
    (functools.partial(engine_gone_in_rollout, 3), 2, "rollout engine 1: .*max_restarts.*"),
    (functools.partial(verifiers_gone, 4), 3, "the math verifier cannot start: no memory"),
    (functools.partial(no_room_for, "metrics.jsonl", 4), 4, ".*metrics.jsonl: cannot be written.*"),
    (functools.partial(wrong_weights, 5), 5, "weight sync of policy version 5: .*model.norm.weight"),
)
"""What happens, the last finished step, what is said: one after the other to one run of six steps."""


def test_what_was_learned_is_saved_first(straight: Any, tmp_path: Path) -> None:
    """No checkpoint is due; after every end the run resumes, and comes to what the undisturbed one comes to, to the
    last bit, with the evaluations that an end kept from being made."""
    base, expected = straight
    config = at(base, tmp_path / "out")
    resume = None
    for fault, step, why in ENDS:
        told = rf"RunEnded: {why}; step {step} is saved: go on from it with --resume auto"
        with pytest.raises(RuntimeError, match=told):
            train(config, 2, resume, fault)
        saved = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
        assert saved[-1] == f"step-{step:08d}", why
        resume = "auto"
    assert train(config, 2, resume) == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def test_a_starved_step_may_learn_from_what_there_is(straight: Any, tmp_path: Path) -> None:
    """One group for two ranks and two mini-batches: one update of the policy; the run goes on to its end."""
    base, _ = straight
    config = at(
        base, tmp_path / "out", rollout={"oversample": 1.0, "filter": {"on_starved": "smaller_batch"}}, run={"steps": 3}
    )
    assert train(config, 2, fault=functools.partial(nothing_passes, 3, 1)) == {0}
    rows = read_lines(config, "metrics.jsonl")
    assert [row.get("rollout/missing") for row in rows] == [None, 0, 0, 4]
    assert rows[3]["rollout/rounds"] == 8 and rows[3]["step/tokens"] < rows[2]["step/tokens"]
    assert 0 < rows[3]["policy/grad_norm"] < 1e3 and rows[3]["policy/skipped_updates"] == 0
    alone = at(config, tmp_path / "alone")
    assert train(alone, 1, fault=functools.partial(nothing_passes, 3, 1)) == {0}
    one = read_lines(alone, "metrics.jsonl")[3]
    for key in ("rollout/outcome", "policy/grad_norm", "prm/grad_norm", "policy/loss"):
        assert one[key] == pytest.approx(rows[3][key], rel=1e-4, abs=1e-6), key


def test_an_end_that_cannot_save_names_both(straight: Any, tmp_path: Path) -> None:
    base, _ = straight
    with pytest.raises(RuntimeError, match=r"RunError: step 3: .*; .*step 2 could not be saved: .*no step yet"):
        train(at(base, tmp_path / "out"), 1, fault=starved_and_no_room)


def starved_and_no_room() -> None:
    from prime_megatron.mcore.checkpoint import ShardWrite

    nothing_passes(3)

    def write(self: Any) -> None:
        raise OSError(28, "No space left on device")

    ShardWrite.write = write


def test_the_command_line_ends_with_86_and_one_line(straight: Any, tmp_path: Path) -> None:
    """Two processes and their launcher; before the first step there is nothing to save, and it says so."""
    base, _ = straight
    rollout = {"filter": {"lower": 0.4, "upper": 0.6, "max_rounds": 1}, "sampling": {"max_response_tokens": 1}}
    config = at(base, tmp_path / "out", rollout=rollout, eval={"every": 0}, data={"eval": []})
    config["launch"] = {"nodes": 1, "processes_per_node": 2}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "prime_megatron", "train", str(tmp_path / "run.yaml")],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.GAVE_UP, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: step 1: ") and line.endswith("; no step was finished, so there is nothing to save")
    assert "Traceback" not in done.stderr + done.stdout and not (tmp_path / "out" / "checkpoints").exists()


def test_which_errors_end_a_run_and_how_they_are_told() -> None:
    def ended(error: Exception, step: int) -> Exception:
        ending = Ending()
        try:
            with ending.noted():
                raise error
            ending.tell(step)
        except Exception as told:
            return told
        raise AssertionError("nothing was told")

    assert isinstance(ended(RunError("why"), 3), RunEnded) and "step 3 is saved" in str(ended(RunError("why"), 3))
    assert isinstance(ended(InputError("row 7"), 3), RunEnded), "what was learned is saved, bad row or not"
    assert type(ended(InputError("row 7"), 0)) is InputError and "nothing to save" in str(ended(RunError("why"), 0))
    assert type(ended(PeerLost("gone"), 3)) is PeerLost, "nobody is there to save with"
    assert type(ended(ValueError("bug"), 3)) is ValueError
    assert isinstance(ended(Diverged("nan"), 3), RunEnded) and "not saved" in str(ended(Diverged("nan"), 3))
    Ending().tell(3)


def bad_row(draw: int) -> None:
    """A supervised row that cannot be rendered, in the middle of a step's rows."""
    from prime_megatron.data import stream

    encode = stream.encode_sft

    def refusing(row: Any, tokenizer: Any, uid: str, number: int, max_tokens: int) -> Any:
        if number == draw:
            raise InputError("rows.jsonl, row 10: the template refuses it")
        return encode(row, tokenizer, uid, number, max_tokens)

    stream.encode_sft = refusing


def no_room_in_sft(step: int) -> None:
    if not on_rank(0):
        return
    from prime_megatron.metrics.jsonl import JsonlFile

    write = JsonlFile.write

    def full(file: Any, lines: str) -> None:
        if f'"step": {step},' in lines:
            file._file = Path("/dev/full").open("a")  # noqa: SIM115
        write(file, lines)

    JsonlFile.write = full


def sft_rank(text: str, resume: str | None, fault: Callable[[], None]) -> int:
    from prime_megatron.config import SftConfig
    from prime_megatron.sft import train_sft

    fault()
    return int(train_sft(SftConfig.model_validate_json(text), resume=resume, overwrite=False))


def train_sft(config: dict[str, Any], world: int, resume: str | None = None, fault: Any = no_fault) -> set[int]:
    return set(run_ranks(sft_rank, world, json.dumps(config), resume, fault, timeout_s=200))


def test_a_supervised_run_saves_first_too(tmp_path: Path) -> None:
    base = sft_config(tmp_path)
    base["checkpoint"] = {"every": 0}
    assert train_sft(base, 2) == {0}
    config = at(base, tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"RunEnded: rows.jsonl, row 10: .*; step 2 is saved: go on from it"):
        train_sft(config, 2, fault=functools.partial(bad_row, 9))
    with pytest.raises(RuntimeError, match=r"RunEnded: .*metrics.jsonl: cannot be written .*; step 3 is saved"):
        train_sft(config, 2, "auto", functools.partial(no_room_in_sft, 3))
    assert train_sft(config, 2, "auto") == {0}
    expected, got = sft_outcome(tmp_path / "straight"), sft_outcome(tmp_path / "out")
    assert [row for row in expected[0] if row["step"] != 3] == got[0], "the row that found no room is missing"
    assert all(tensor.equal(got[1][name]) for name, tensor in expected[1].items())


def test_a_run_goes_on_without_its_console(straight: Any, tmp_path: Path) -> None:
    """As `train | head -1`: every step is taken, and standard error says why nothing more is seen."""
    base, _ = straight
    config = at(base, tmp_path / "out", eval={"every": 0}, data={"eval": []}, run={"steps": 2})
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "prime_megatron", "train", str(tmp_path / "run.yaml")],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=200, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in read_lines(config, "metrics.jsonl")] == [0, 1, 2]
    assert "warning: standard output: Broken pipe; the run goes on without it" in done.stderr
    assert "Traceback" not in done.stderr
