"""What one GPU can show of this project, in minutes: `python tools/gpu_check.py [--json FILE] [--only NAME ...]`.

For a new machine, with the interpreter of the environment that will train there. The GPU tests and the kernels', the
benches of what runs on the device, three PRIME steps on the quick start's task with the embedded engine and, where they
are installed, with SGLang and on Transformer Engine's layers, and two replayed steps at 1.5 billion parameters
(tools/replay_task.py). Each part has a time limit of its own and is told as it ends; one that fails or takes too long
is named and the others go on. The last lines are a table; FILE (default runs/gpu_check/gpu_check.json) has the same
and the ends of the outputs.

Exit codes: 0 everything ran, 1 a part failed, 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = Path("runs/gpu_check")
OPEN = ["rollout.filter.lower=0.0", "rollout.filter.upper=1.0", "run.steps=3"]
"""An untrained model is hardly ever right: nothing is filtered."""
REPLAY = [
    "run.steps=2", "rollout.engine=replay", "data.max_prompt_tokens=128", "rollout.sampling.max_response_tokens=1536",
    "packing.max_tokens=8192", "checkpoint.save_final=false", "checkpoint.export_final=false",
]  # fmt: skip
"""Two steps of tools/replay_task.py's recording."""


@dataclass(frozen=True)
class Part:
    """One thing to run."""

    name: str
    command: list[str]
    limit_s: float
    figure: Callable[[str], str]
    """What the table shows of its output."""


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    name: str
    ended: str
    """ok, failed, or too long."""
    seconds: float
    figure: str
    output_end: str


def last_line(output: str) -> str:
    """Of a test run or a bench: the counts, or the one line of JSON."""
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip("= ")[:160] if lines else ""


def step_line(output: str) -> str:
    """Of a training run: its last step."""
    steps = re.findall(r"^\S+ (step \d+/\d+ .*)$", output, flags=re.MULTILINE)
    return steps[-1][:160] if steps else last_line(output)


def parts(output: Path) -> list[Part]:
    """Everything for this environment, the shortest first."""
    python = sys.executable
    made = [
        Part("tests", [python, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"], 90.0, last_line),
        Part("kernels", [python, "-m", "pytest", "-q", "tests/kernels"], 120.0, last_line),
    ]
    for bench, more in (("reward", []), ("logprob", ["--no-peers"]), ("reshard", []), ("buckets", ["--rounds", "2"])):
        command = [python, "tools/bench.py", bench, "--device", "cuda", *more]
        made.append(Part(f"bench {bench}", command, 60.0, last_line))
    task = output / "task"
    made.append(Part("task", [python, "examples/quickstart/make_task.py", "--output", str(task)], 60.0, last_line))
    train = [python, "-m", "prime_megatron", "train", "examples/quickstart/prime.yaml", "--overwrite"]
    train += [f"data.train=[{task / 'train.jsonl'}]", "data.eval=[]"]
    train += ["models.dtype=bfloat16", "parallel.pipeline=1", "launch.processes_per_node=1", "eval.every=0"]
    runs = {"embedded": ["rollout.engine=embedded"]}
    if importlib.util.find_spec("sglang"):
        runs["sglang"] = ["rollout.engine=sglang"]
    if importlib.util.find_spec("transformer_engine_torch"):
        runs["te"] = ["models.layers=te"]
    for name, more in runs.items():
        here = [f"run.output_dir={output / name}", f"models.policy.path={task / 'model'}", *OPEN, *more]
        made.append(Part(f"steps {name}", [*train, *here], 120.0, step_line))
    large = output / "large"
    made.append(Part("1.5B", [python, "tools/replay_task.py", str(large)], 60.0, last_line))
    replay = [f"run.output_dir={output / 'replay'}", f"models.policy.path={large / 'model'}", *REPLAY]
    replay.append(f"rollout.replay={large / 'recording.jsonl'}")
    made.append(Part("replay 1.5B", [*train, *replay], 120.0, step_line))
    return made


def run_part(part: Part) -> Outcome:
    """Run it in a process group of its own, which ends with it."""
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        part.command, cwd=ROOT, env=environment, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=part.limit_s)
        ended = "ok" if process.returncode == 0 else f"failed ({process.returncode})"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        ended = f"longer than {part.limit_s:.0f} s"
    return Outcome(part.name, ended, round(time.monotonic() - started, 1), part.figure(output), output[-4000:])


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    rows = [f"| {one.name} | {one.ended} | {one.seconds} | {one.figure.replace('|', '/')} |" for one in outcomes]
    return "\n".join(["| part | ended | s | figure |", "|---|---|---|---|", *rows])


def check(chosen: Sequence[Part], target: Path) -> int:
    """Run parts one after the other; 0 when all of them ended well."""
    outcomes = []
    for part in chosen:
        outcomes.append(run_part(part))
        print(f"{part.name}: {outcomes[-1].ended}, {outcomes[-1].seconds} s", file=sys.stderr, flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    print(table(outcomes))
    return int(any(one.ended != "ok" for one in outcomes))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", type=Path, default=OUTPUT / "gpu_check.json", metavar="FILE", help="the same in JSON")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these parts, by the first column of the table")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print(f"error: no GPU here: torch {torch.__version__} finds no CUDA device", file=sys.stderr)
        return 2
    everything = parts(OUTPUT.resolve())
    unknown = set(arguments.only or ()) - {part.name for part in everything}
    if unknown:
        print(f"error: no part {min(unknown)!r}; there are {[part.name for part in everything]}", file=sys.stderr)
        return 2
    return check([part for part in everything if arguments.only is None or part.name in arguments.only], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
