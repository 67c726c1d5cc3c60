"""Starts a process of the jail, `start.py worker|zygote ...`, without running our packages' __init__ files."""

import sys
from pathlib import Path
from types import ModuleType


def bare_packages() -> None:
    """Makes our packages importable without running their __init__ files, which load the rest of the program."""
    folder = Path(__file__).resolve().parents[3]
    for name in ("prime_megatron", "prime_megatron.verify", "prime_megatron.verify.code"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package


if __name__ == "__main__":
    bare_packages()
    if sys.argv[1] == "zygote":
        from prime_megatron.verify.code.jail.zygote import main
    else:  # MEMORY_BYTES PARENT_PID SETTINGS, as every worker process is started
        from prime_megatron.verify.code.jail.worker import main
    sys.exit(main(sys.argv[2:]))
