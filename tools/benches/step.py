"""A whole training step: FLOPs against the necessary ones, CPU seconds against TRL on the same work.

forwards_*: FLOPs of the trainer's step, single or double PRM forward, 1 or 4 mini-batches, over those of one forward of
the same tokens, both counted by torch's FlopCounterMode. cpu_s_*: CPU seconds of a step, one thread, medians; each
trainer is a process of its own and they step in turn. --setup makes the environment that holds TRL, on the torch and
transformers that this one has.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

from prime_megatron.config import TrainConfig
from prime_megatron.run.assemble import open_parts
from prime_megatron.trainer import PrimeTrainer
from tests.support import flops
from tools.benches import common
from tools.benches.step_work import ours, task

ROOT = Path(__file__).resolve().parents[2]
TRL = "trl==1.16.0"
TRL_SIDES = ("rloo", "grpo")
WARMUP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `bench.py step`."""
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    parser.add_argument("--rounds", type=int, default=8, help="measured steps of each trainer")
    parser.add_argument("--trl-env", type=Path, default=ROOT / ".venv-trl", help="virtual environment that holds TRL")
    parser.add_argument("--setup", action="store_true", help="make that environment first")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures; TRL is left out where its environment is missing."""
    where = common.use_device(arguments.device)
    if arguments.setup:
        make_environment(arguments.trl_env)
    with tempfile.TemporaryDirectory() as folder:
        task.make_model(Path(folder) / "model")
        with contextlib.redirect_stdout(sys.stderr):  # what a run says of itself is no figure
            figures: dict[str, Any] = {name: forwards(Path(folder), name) for name in flops.SCHEDULES}
        commands = {side: _ours(side, folder, arguments.rounds) for side in ours.SIDES}
        python = arguments.trl_env / "bin" / "python"
        if python.exists():
            commands |= {f"trl-{side}": _trl(str(python), side, folder, arguments.rounds) for side in TRL_SIDES}
        cpu_s, about = in_turn(commands, arguments.rounds)
    figures |= {f"cpu_s_{side}": _median(cpu_s[side]) for side in ours.SIDES}
    peers: dict[str, Any] = {}
    for peer in commands.keys() - ours.SIDES.keys():
        peers[peer] = {"cpu_s": _median(cpu_s[peer]), **about[peer]}
        for side in ours.SIDES:
            figures[f"{side}_x_{peer}"] = common.ratio(cpu_s, side, peer)
    return common.line("step", where, figures, peers, ("megatron-core", "transformers"))


def forwards(folder: Path, figure: str) -> float:
    """FLOPs of one step of the schedule in units of a forward."""
    update, minis, _ = flops.SCHEDULES[figure]
    replay = flops.make_recording(folder / "recording.jsonl", steps=1, vocab=task.VOCAB)
    settings = ours.settings(folder, figure, steps=1, advantage={}, ability="exact").model_dump(mode="json")
    for section, changes in flops.schedule(update, minis).items():
        settings[section] = _merged(settings[section], changes)
    settings["rollout"] |= {"engine": "replay", "replay": replay}
    config = TrainConfig.model_validate_json(json.dumps(settings))
    with open_parts(config, resume=None, overwrite=False) as parts:
        return round(flops.step_forwards(PrimeTrainer(config, parts), 1), 4)


def in_turn(commands: dict[str, list[str]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """CPU seconds of every command's steps without the first ones, and what each said about itself.

    The commands obey the protocol of `step_work.trl_peer`; only one of them works at a time.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = {
        name: subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
            env=environment,
        )
        for name, command in commands.items()
    }  # fmt: skip
    try:
        about = {name: _read(name, process) for name, process in processes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(WARMUP + rounds):
            for name, process in processes.items():
                assert process.stdin is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                seconds[name].append(_read(name, process)["cpu_s"])
        return {name: values[WARMUP:] for name, values in seconds.items()}, about
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _read(name: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"bench: {name} ended: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
    return json.loads(line)


def _ours(side: str, folder: str, rounds: int) -> list[str]:
    return [sys.executable, "-m", "tools.benches.step_work.ours", side, folder, str(WARMUP + rounds)]


def _trl(python: str, side: str, folder: str, rounds: int) -> list[str]:
    script = ROOT / "tools" / "step_work" / "trl_peer.py"
    return [python, str(script), side, f"{folder}/model", str(WARMUP + rounds)]


def make_environment(folder: Path) -> None:
    """A virtual environment with TRL that reads everything else from the one that runs this."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = folder / "lib" / version / "site-packages" / "shared.pth"
    shared.write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", TRL], check=True, stdout=sys.stderr)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 4)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    deep = {key: _merged(base[key], value) for key, value in over.items() if isinstance(value, dict)}
    return base | over | deep
