"""Run stages of `curate` that are killed with SIGKILL: `python -m tests.support.stage_killer '[[WORDS, MOMENT], ...]'`.

Blocks are of SMALL rows. MOMENT `block`: when the first block is kept; `output`: when all is written and OUT has not
its name yet. Each runs in a fork of this process, which pays for the imports once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

from prime_megatron.cli import curate_texts
from prime_megatron.cli.main import main
from prime_megatron.generate.blocks import Blocks

SMALL = 50


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(words: list[str], moment: str) -> None:
    output = words[words.index("--output") + 1]
    commit, replace = Blocks.commit_lines, os.replace

    def commit_lines(self: Blocks, index: int, lines: Iterable[bytes]) -> None:
        commit(self, index, lines)
        die()

    def replaced(source: Any, target: Any) -> None:
        if str(target) == output:
            die()
        replace(source, target)

    curate_texts.BLOCK = curate_texts.READ_BLOCK = SMALL
    if moment == "block":
        Blocks.commit_lines = commit_lines  # type: ignore[method-assign]
    else:
        os.replace = replaced
    main(words)


if __name__ == "__main__":
    for words, moment in json.loads(sys.argv[1]):
        child = os.fork()
        if child == 0:
            run(words, moment)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"{words[1]} was not killed at its {moment}: status {status}")
