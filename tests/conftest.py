"""What every test shares: one thread a process, no network, no leftovers of a launcher in the environment."""

import importlib.util
import os

import pytest

# Before torch is imported anywhere: a suite runs more processes than a small machine has cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if importlib.util.find_spec("sglang") is None and not os.path.exists("/dev/nvidiactl"):
    # Triton reads it when a kernel is defined, and other packages' tests may import Triton first. SGLang has kernels of
    # its own that must stay as they are.
    os.environ.setdefault("TRITON_INTERPRET", "1")
if importlib.util.find_spec("hypothesis") is not None:
    import hypothesis

    # A busy machine is no defect.
    hypothesis.settings.register_profile("no-deadline", deadline=None)
    hypothesis.settings.load_profile("no-deadline")

LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test behaves the same under torchrun and without."""
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
