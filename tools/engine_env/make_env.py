"""Make a virtual environment that holds the trainer and one generation engine, for a machine without a GPU.

    python tools/engine_env/make_env.py {sglang|vllm} DIR

DIR is made anew unless it already holds exactly these pins (a second call does nothing). Packages come from where pip
is configured to look (pip.conf, PIP_* variables; without any, PyPI), and where the CPU build of torch is not found
there, from TORCH_INDEX as well. The pins are for Python 3.11: this script may run under another, which then looks for
python3.11 on the PATH. `--lock` rewrites the lock files from the `.in` files.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
UV = "uv==0.13.8"
PYTHON = (3, 11)
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


class EnvError(Exception):
    """One line for the user: what failed and what to do."""


def run(command: list[str], what: str, env: dict[str, str] | None = None) -> str:
    """Run `command`; returns stdout. Raises EnvError naming `what` with the last lines of stderr."""
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=False)
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


def digest(engine: str) -> str:
    """Hash of everything that decides an environment's content."""
    state = hashlib.sha256()
    for path in (Path(__file__), HERE / f"{engine}.lock"):
        state.update(path.read_bytes())
    if engine == "sglang":
        state.update(str(HERE / "stubs").encode())  # the environment points there
    return state.hexdigest()


def find_uv(directory: Path) -> str:
    """uv of the PATH, else a pinned one installed into the environment from pip's sources."""
    on_path = shutil.which("uv")
    if on_path:
        return on_path
    python = str(directory / "bin" / "python")
    run([python, "-m", "pip", "install", "-q", UV], f"installing {UV}")
    return str(directory / "bin" / "uv")


def find_python() -> str:
    """An interpreter of the version that the pins are for. Raises EnvError."""
    wanted = "{}.{}".format(*PYTHON)
    found = sys.executable if sys.version_info[:2] == PYTHON else shutil.which(f"python{wanted}")
    if found is None:
        raise EnvError(f"the pins are for Python {wanted}, this is {sys.version.split()[0]}: install python{wanted}")
    return found


def install(engine: str, uv: str, python: str) -> None:
    """The locked packages into the environment of `python`. Raises EnvError."""
    options, env = pip_sources(python)
    command = [uv, "pip", "install", "-q", "--python", python, "--no-deps", *options]
    command += ["-r", str(HERE / f"{engine}.lock")]
    what = f"installing the packages of {engine}"
    try:
        run(command, what, env)
    except EnvError as error:
        if "torch" not in str(error) or "--no-index" in options:
            raise
        # Not asked at first: uv takes an index that it cannot reach for an error.
        run([*command, "--extra-index-url", TORCH_INDEX], what, env)


def make(engine: str, directory: Path) -> None:
    """Make `directory` the environment of `engine`. Raises EnvError; a failed environment carries no stamp."""
    stamp = directory / STAMP
    wanted = digest(engine)
    if stamp.is_file() and stamp.read_text() == wanted:
        print(f"{directory}: already complete for {engine}")
        return
    if directory.exists() and not (directory / "pyvenv.cfg").is_file() and any(directory.iterdir()):
        raise EnvError(f"{directory} exists and is no virtual environment: name another directory or remove it")
    started = time.monotonic()
    run([find_python(), "-m", "venv", "--clear", str(directory)], f"making {directory}")
    python = str(directory / "bin" / "python")
    install(engine, find_uv(directory), python)
    site = run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "finding site-packages"
    ).strip()
    if engine == "sglang":
        # A .pth entry stands at the end of sys.path: a real torchvision or sgl_kernel, once installed, wins.
        (Path(site) / "engine_stubs.pth").write_text(f"{HERE / 'stubs'}\n")
    # Proves the environment, and leaves byte code of what is used (all of it would take 40 s more).
    check = "import torch; assert torch.version.cuda is None, torch.__version__; import megatron.core, transformers"
    env = {**os.environ, **IMPORT_ENV}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    run([python, "-c", f"{check}; {IMPORTS[engine]}"], f"importing torch (CPU build), megatron.core and {engine}", env)
    stamp.write_text(wanted)
    print(f"{directory}: made for {engine} in {time.monotonic() - started:.0f} s")


def lock(engine: str) -> None:
    """Rewrite the lock file of `engine` from the `.in` files with the packages of this day."""
    uv = shutil.which("uv")
    if uv is None:
        raise EnvError("--lock needs uv on the PATH: pip install uv")
    options, env = pip_sources(sys.executable)
    target = HERE / f"{engine}.lock"
    command = [uv, "pip", "compile", "-q", *options, "--python-version", ".".join(map(str, PYTHON)), "--no-header"]
    command += ["--no-annotate", "--no-emit-find-links", "--no-emit-index-url", "--upgrade", "-o", str(target)]
    command += ["--overrides", str(HERE / f"{engine}.absent"), str(HERE / "trainer.in"), str(HERE / f"{engine}.in")]
    run(command, f"resolving {engine}", env)
    alone = HERE / f"{engine}.nodeps"
    if alone.is_file():
        target.write_text(target.read_text() + alone.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("engine", choices=("sglang", "vllm"))
    parser.add_argument("directory", type=Path, nargs="?", help="the environment (made or replaced)")
    parser.add_argument("--lock", action="store_true", help="rewrite the lock file and do nothing else")
    chosen = parser.parse_args()
    try:
        if chosen.lock:
            lock(chosen.engine)
        elif chosen.directory is None:
            raise EnvError("name the directory of the environment")
        else:
            make(chosen.engine, chosen.directory)
    except EnvError as error:
        print(f"make_env: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
