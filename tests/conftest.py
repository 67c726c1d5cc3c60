"""What every test shares: one thread a process, no network, no leftovers of a launcher in the environment."""

import os

import pytest

# Before torch is imported anywhere: a suite runs more processes than a small machine has cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test behaves the same under torchrun and without."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
