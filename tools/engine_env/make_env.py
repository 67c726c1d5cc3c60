"""Make a virtual environment that holds the trainer and one generation engine.

    python tools/engine_env/make_env.py {sglang|vllm} DIR          for a machine without a GPU
    python tools/engine_env/make_env.py {sglang|vllm} DIR --gpu    with CUDA builds, the engine's kernels, TE's core

The environment is of the Python that runs this, 3.11 to 3.13; locks/ has the pins of each, all from the same `.in`
files. DIR is made anew unless it already holds exactly these pins (a second call does nothing). Packages come from
where pip is configured to look (pip.conf, PIP_* variables; without any, PyPI), and where torch is not found there, from
TORCH_INDEX as well. Without --gpu a CUDA build of torch does where there is no CPU build.

`--lock` rewrites the lock of this engine for every Python from the `.in` files; `--check` resolves the locks for this
Python without installing anything, and fails where two pins do not go together.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = "uv==0.13.8"
PYTHONS = ((3, 11), (3, 12), (3, 13))
STAMP = ".engine_env"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyPI's own build of torch for Linux is the CUDA one, gigabytes of it."""
IMPORTS = {
    # The registry imports every model, and each scheduler process does so at its start.
    "sglang": "import sglang.srt.entrypoints.http_server, sglang.srt.models.registry",
    "vllm": "from vllm import LLM; import vllm.v1.worker.cpu_worker, vllm.model_executor.models.qwen2",
}
IMPORT_ENV = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
# The console that shows an error needs its end, not the resolver's whole story.
ERROR_LINES = 3
CHECK_TIMEOUT_S = 120.0


class EnvError(Exception):
    """One line for the user: what failed and what to do."""


@dataclass(frozen=True)
class Target:
    """What an environment is for."""

    engine: str
    gpu: bool
    python: tuple[int, int]

    @property
    def name(self) -> str:
        """Of the `.in` file."""
        return f"{self.engine}-gpu" if self.gpu else self.engine

    @property
    def lock(self) -> Path:
        """The pins."""
        return HERE / "locks" / "{}-py{}{}.lock".format(self.name, *self.python)

    @property
    def on_cpu_stubs(self) -> bool:
        """Whether import stand-ins take the place of packages without a CPU build."""
        return self.engine == "sglang" and not self.gpu


def run(command: list[str], what: str, env: dict[str, str] | None = None, timeout_s: float | None = None) -> str:
    """Run `command`; returns stdout. Raises EnvError naming `what` with the last lines of stderr."""
    try:
        done = subprocess.run(command, env=env, text=True, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise EnvError(f"{what} took longer than {timeout_s:.0f} s") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout).splitlines()  # `venv` complains on stdout
        raise EnvError(f"{what} failed: {' '.join(' '.join(lines[-ERROR_LINES:]).split())}")
    return done.stdout


def pip_sources(python: str) -> tuple[list[str], dict[str, str]]:
    """pip's configured sources as uv's options, and the variables uv needs (certificate, patience).

    pip reads several scopes (`global.`, `user.`, `:env:.`); a value may hold several entries.
    """
    found: dict[str, list[str]] = {}
    for line in run([python, "-m", "pip", "config", "list"], "reading pip's configuration").splitlines():
        key, _, value = line.partition("=")
        words = found.setdefault(key.rsplit(".", 1)[-1], [])
        words += [word for word in str(ast.literal_eval(value)).split() if word not in words]
    options = []
    for name in ("find-links", "extra-index-url"):
        for word in found.get(name, []):
            options += [f"--{name}", word]
    if found.get("index-url"):
        options += ["--index-url", found["index-url"][-1]]
    if found.get("no-index", ["false"])[-1].lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    # pip looks for the best version in all indexes; uv by default stops at the first that knows the name.
    options += ["--index-strategy", "unsafe-best-match"]
    env = dict(os.environ)
    if found.get("cert"):
        env.setdefault("SSL_CERT_FILE", found["cert"][-1])
    if found.get("default-timeout") or found.get("timeout"):
        env.setdefault("UV_HTTP_TIMEOUT", (found.get("default-timeout") or found["timeout"])[-1])
    return options, env


def digest(target: Target) -> str:
    """Hash of everything that decides an environment's content."""
    state = hashlib.sha256()
    for path in (Path(__file__), target.lock):
        state.update(path.read_bytes())
    if target.on_cpu_stubs:
        state.update(str(HERE / "stubs").encode())  # the environment points there
    return state.hexdigest()


def find_uv(python: str) -> str:
    """uv of the PATH, else a pinned one installed beside an environment's interpreter from pip's sources."""
    on_path = shutil.which("uv")
    if on_path:
        return on_path
    beside = Path(python).with_name("uv")
    if not beside.is_file():
        run([python, "-m", "pip", "install", "-q", UV], f"installing {UV}")
    return str(beside)


def this_target(engine: str, gpu: bool) -> Target:
    """For the Python that runs this. Raises EnvError: there are no pins for it."""
    python = sys.version_info[:2]
    if python not in PYTHONS:
        known = ", ".join("{}.{}".format(*one) for one in PYTHONS)
        raise EnvError(f"there are pins for Python {known}; this is {sys.version.split()[0]}: run it with one of them")
    return Target(engine, gpu, (python[0], python[1]))


def install(target: Target, uv: str, python: str) -> None:
    """The locked packages into the environment of `python`. Raises EnvError."""
    options, env = pip_sources(python)
    command = [uv, "pip", "install", "-q", "--python", python, *options]
    what = f"installing the packages of {target.name}"
    pins = ["--no-deps", "-r", str(target.lock)]
    try:
        run([*command, *pins], what, env)
    except EnvError as error:
        if "torch" not in str(error) or "--no-index" in options:
            raise
        # Not asked at first: uv takes an index that it cannot reach for an error.
        run([*command, *pins, "--extra-index-url", TORCH_INDEX], what, env)


def complete_torch(uv: str, python: str) -> None:
    """Where there was no CPU build, torch does not import without libraries that a lock for CPUs does not name."""
    version = run([python, "-c", "from importlib.metadata import version; print(version('torch'))"], "finding torch")
    if "+cpu" not in version:
        options, env = pip_sources(python)
        command = [uv, "pip", "install", "-q", "--python", python, *options, f"torch=={version.strip()}"]
        run(command, "installing the libraries of torch's CUDA build", env)


def make(target: Target, directory: Path) -> None:
    """Make `directory` the environment of `target`. Raises EnvError; a failed environment carries no stamp."""
    stamp = directory / STAMP
    wanted = digest(target)
    if stamp.is_file() and stamp.read_text() == wanted:
        print(f"{directory}: already complete for {target.name}")
        return
    if directory.exists() and not (directory / "pyvenv.cfg").is_file() and any(directory.iterdir()):
        raise EnvError(f"{directory} exists and is no virtual environment: name another directory or remove it")
    started = time.monotonic()
    run([sys.executable, "-m", "venv", "--clear", str(directory)], f"making {directory}")
    python = str(directory / "bin" / "python")
    uv = find_uv(python)
    install(target, uv, python)
    if not target.gpu:
        complete_torch(uv, python)
    site = run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "finding site-packages"
    ).strip()
    if target.on_cpu_stubs:
        # A .pth entry stands at the end of sys.path: a real torchvision or sgl_kernel, once installed, wins.
        (Path(site) / "engine_stubs.pth").write_text(f"{HERE / 'stubs'}\n")
    imports = "import torch, megatron.core, transformers"
    if not target.gpu:  # an engine's CUDA parts want a driver, which the machine that builds an image may lack
        imports = f"{imports}; {IMPORTS[target.engine]}"
    # Proves the environment, and leaves byte code of what is used (all of it would take 40 s more).
    env = os.environ | ({} if target.gpu else IMPORT_ENV)
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    torch = run([python, "-c", f"{imports}; print(torch.__version__)"], f"importing torch and {target.engine}", env)
    if not target.gpu and target.engine == "sglang" and "+cpu" not in torch:
        print("note: torch is a CUDA build, with which SGLang at rollout.tensor=2 and its sleep fail without a GPU")
    stamp.write_text(wanted)
    said = f"torch {torch.splitlines()[-1]}, {time.monotonic() - started:.0f} s"
    print(f"{directory}: made for {target.name}, Python {'{}.{}'.format(*target.python)} ({said})")


def lock(target: Target) -> None:
    """Rewrite the lock file of `target` from the `.in` files with the packages of this day."""
    options, env = pip_sources(sys.executable)
    command = [find_uv(sys.executable), "pip", "compile", "-q", *options, "--no-header", "--no-annotate", "--upgrade"]
    command += ["--python-version", "{}.{}".format(*target.python), "--no-emit-find-links", "--no-emit-index-url"]
    command += ["-o", str(target.lock), str(HERE / "trainer.in"), str(HERE / f"{target.name}.in")]
    absent, alone = HERE / f"{target.name}.absent", HERE / f"{target.name}.nodeps"
    if absent.is_file():
        command += ["--overrides", str(absent)]
    run(command, f"resolving {target.name}", env)
    pins = target.lock.read_text().splitlines(keepends=True)
    if not target.gpu:
        # Of a CUDA build of torch, where the resolver found no CPU build (see complete_torch).
        pins = [line for line in pins if line.startswith("nvidia-ml-py") or not line.startswith(("nvidia-", "cuda-"))]
    target.lock.write_text("".join(pins) + (alone.read_text() if alone.is_file() else ""))


def check(target: Target, pins: str) -> None:
    """Resolve pins, with all that each asks for, as an installation into an empty environment would.

    Raises:
        EnvError: two of them do not go together, or one is not published for this Python.
    """
    options, env = pip_sources(sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pins.txt").write_text(pins)
        command = [
            find_uv(sys.executable),
            "pip",
            "install",
            "--dry-run",
            "-q",
            *options,
            "--target",
            f"{folder}/empty",
        ]
        command += ["--python", sys.executable, "-r", f"{folder}/pins.txt"]
        run(command, f"resolving {target.lock.name}", env, CHECK_TIMEOUT_S)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("engine", choices=("sglang", "vllm"))
    parser.add_argument("directory", type=Path, nargs="?", help="the environment (made or replaced)")
    parser.add_argument("--gpu", action="store_true", help="for a machine with NVIDIA GPUs")
    parser.add_argument("--lock", action="store_true", help="rewrite the lock files and do nothing else")
    parser.add_argument("--check", action="store_true", help="resolve the lock file and do nothing else")
    chosen = parser.parse_args()
    try:
        if chosen.lock:
            for python in PYTHONS:
                lock(Target(chosen.engine, chosen.gpu, python))
        elif chosen.check:
            if not chosen.gpu:
                raise EnvError("--check is for --gpu: without one, parts of an engine are left out on purpose")
            target = this_target(chosen.engine, chosen.gpu)
            check(target, target.lock.read_text())
        elif chosen.directory is None:
            raise EnvError("name the directory of the environment")
        else:
            make(this_target(chosen.engine, chosen.gpu), chosen.directory)
    except EnvError as error:
        print(f"make_env: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
