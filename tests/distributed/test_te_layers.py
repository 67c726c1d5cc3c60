"""Transformer Engine's layers where there is no GPU: megatron-core's own wrappers, and our names of their weights, on
stand-ins that have the locked release's signatures, weights and names (tests/support/te_stand_in.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import models, te_stand_in
from tools import compatibility

ROOT = Path(__file__).parents[2]
NAMES = sorted(models.FAMILIES)


def test_the_signatures_are_of_the_locked_release() -> None:
    for lock in compatibility.LOCKS.glob("*-gpu-*.lock"):
        (python,) = (python for python in compatibility.PYTHONS if lock.stem.endswith(python.replace(".", "")))
        locked = compatibility.pins(lock.read_text(), python)["transformer-engine"]
        assert locked == te_stand_in.TABLE["version"], "run tools/te_signatures.py, as its docstring says"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """(folder, logits by model on the stand-ins, logits of transformers)."""
    folder = tmp_path_factory.mktemp("te")
    sequences = models.sequences(te_stand_in.LENGTHS)
    expected = {name: models.reference_logits(models.make_model(folder / name, name), sequences) for name in NAMES}
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.te_logits", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, torch.load(folder / "logits.pt"), expected


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_weights(name: str, runs: Any) -> None:
    folder, found, expected = runs
    torch.testing.assert_close(found[name], expected[name], rtol=0, atol=2e-5)
    before, after = (load_file(place / name / "model.safetensors") for place in (folder, folder / "exported"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_stand_in_takes_what_the_real_class_takes() -> None:
    sizes = {"normalized_shape": 4, "eps": 1e-5}
    assert te_stand_in.TABLE["classes"]["RMSNorm"]["init"]["open"]
    with pytest.raises(TypeError, match="out_features"):
        te_stand_in.Linear(in_features=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'normalized_shape'"):
        te_stand_in.Linear(in_features=4, out_features=4, **sizes)
