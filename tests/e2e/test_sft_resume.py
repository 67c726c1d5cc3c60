"""Supervised runs: N steps equal k steps, a stop or a kill, a resume, and N - k steps, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prime_megatron.errors import ExitCode
from tests.support.ranks import run_ranks
from tests.support.resume_runs import at, no_fault
from tests.support.sft_runs import assert_same, outcome, sft_config
from tests.support.toy import merge

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}), "dp2": (2, {}), "pp2": (2, {"pipeline": 2}), "tp2": (2, {"tensor": 2}),
}  # fmt: skip
EPOCHS = {"run": {"steps": 0, "epochs": 2}, "batch_size": 6}
"""Of dp2: twenty rows in four steps, the last of two rows."""


def sft_rank(text: str, resume: str | None, fault: Callable[[], None]) -> int:
    from prime_megatron.config import SftConfig
    from prime_megatron.sft import train_sft

    fault()
    return int(train_sft(SftConfig.model_validate_json(text), resume=resume, overwrite=False))


def train(config: dict[str, Any], world: int, resume: str | None = None, fault: Any = no_fault) -> set[int]:
    return set(run_ranks(sft_rank, world, json.dumps(config), resume, fault, timeout_s=200))


@pytest.fixture(scope="module", params=LAYOUTS)
def straight(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    world, parallel = LAYOUTS[request.param]
    config = merge(sft_config(folder, **parallel), EPOCHS if request.param == "dp2" else {})
    assert train(config, world) == {0}
    result = outcome(folder / "straight")
    assert [row["step"] for row in result[0]] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in result[0] if "eval/perplexity" in row] == [0, 2, 4]
    assert result[0][-1]["sft/epoch"] == 1.0 and result[0][-1]["sft/grad_norm"] > 0
    return folder, config, world, result


@pytest.mark.parametrize("step", [1, 3])
def test_resume_changes_no_bit(straight: Any, step: int, tmp_path: Path) -> None:
    """As after a lost node: the newest checkpoint, and logs that go on beyond it."""
    folder, config, world, expected = straight
    name = f"checkpoints/step-{step:08d}"
    shutil.copytree(folder / "straight" / name, tmp_path / "out" / name)
    shutil.copy(folder / "straight" / "metrics.jsonl", tmp_path / "out" / "metrics.jsonl")
    assert train(at(config, tmp_path / "out"), world, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def stop_in_second_step() -> None:
    from prime_megatron.sft import SftTrainer

    step, calls = SftTrainer.step, []

    def stopped(self: Any, groups: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, groups)

    SftTrainer.step = stopped  # type: ignore[method-assign]


def test_a_signal_saves_and_asks_for_another_turn(straight: Any, tmp_path: Path) -> None:
    _, base, world, expected = straight
    config = at(base, tmp_path / "out", checkpoint={"every": 0})
    assert train(config, world, fault=stop_in_second_step) == {ExitCode.REQUEUE}
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000002"]
    assert not (tmp_path / "out" / "model").exists()
    assert train(config, world, resume="auto") == {0}
    assert_same(outcome(tmp_path / "out"), expected)


def test_another_meaning_is_refused(straight: Any, tmp_path: Path) -> None:
    folder, base, world, _ = straight
    shutil.copytree(folder / "straight" / "checkpoints", tmp_path / "out" / "checkpoints")
    for sections, key in (({"optimizer": {"lr": 1.0}}, "optimizer.lr"), ({"run": {"steps": 9}}, "run.steps")):
        with pytest.raises(RuntimeError, match=rf"(?s)InputError: --resume: .*  {key}: "):
            train(at(base, tmp_path / "out", **sections), world, resume="auto")


def bad_gradients() -> None:
    from prime_megatron.sft import SftTrainer

    step = SftTrainer.step

    def skipped(self: Any, batch: Any) -> Any:
        update = self.policy.optimizer.step
        self.policy.optimizer.step = lambda fine, memory: update(False, memory)  # as after a loss that is not finite
        try:
            return step(self, batch)
        finally:
            del self.policy.optimizer.step

    SftTrainer.step = skipped  # type: ignore[method-assign]


def test_too_many_skipped_updates_end_it(straight: Any, tmp_path: Path) -> None:
    _, base, world, _ = straight
    config = at(base, tmp_path / "out", run={"max_nonfinite": 2})
    with pytest.raises(RuntimeError, match=r"RunEnded: step 2: policy: 2 updates in a row .*; step 2 is saved"):
        train(config, world, fault=bad_gradients)
    assert (tmp_path / "out" / "nonfinite" / "step-00000001-policy-rank-00000.safetensors").exists()
