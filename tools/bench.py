"""Benchmarks: `python tools/bench.py NAME [--device cpu|cuda]` runs tools/benches/NAME.py and prints one JSON line."""

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELPERS = {"__init__", "common", "reshard_table"}


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported by a bench
    sys.path.insert(0, str(ROOT))
    names = sorted(p.stem for p in (ROOT / "tools" / "benches").glob("*.py") if p.stem not in HELPERS)
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="name", required=True)
    chosen = next((word for word in sys.argv[1:] if word in names), None)
    for name in names:
        command = commands.add_parser(name, allow_abbrev=False)
        if name == chosen:  # only the chosen bench is imported
            bench = importlib.import_module(f"tools.benches.{name}")
            command.description = bench.__doc__
            bench.add_arguments(command)
    arguments = parser.parse_args()
    common = importlib.import_module("tools.benches.common")
    common.emit(bench.run(arguments))


if __name__ == "__main__":
    main()
