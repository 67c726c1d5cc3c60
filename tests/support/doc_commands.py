"""What the pages of the documentation hold: fenced blocks, the marks above them, the commands in them.

Commands stand in ```bash blocks. A mark is a comment on the line above a block:

    <!-- needs: a GPU -->                 what the commands need that a test does not have, a key of NEEDS
    <!-- run by: tests/e2e/test_x.py -->  the test that runs them
    <!-- run with: run.steps=2 -->        keys that make its runs short enough for a test, which runs them so
    <!-- output: varies -->               the text block is an example of what the commands above it print

A bash block without a mark is run by tests/unit/test_docs_commands.py, after the files of its page that have a title
(```yaml title="run.yaml"). The text block behind it is what the commands print.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDS = {
    "a cluster": "SLURM, Kubernetes or several machines",
    "a GPU": "one or more",
    "an engine": "an environment that tools/engine_env makes, or a server of a model",
    "minutes": "more than two of them",
    "model weights": "a published model, or one of the reader's",
    "published data": "files that others publish, put there by hand",
    "root": "and Debian's packages",
    "the network": "packages or files are fetched",
}
GENERATED = ("reference/",)
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?$")
_MARK = re.compile(r"^<!-- (needs|run by|run with|output): (.+) -->$")
# How a line of a shell begins that is a command of this project's or of what it stands on.
COMMAND = re.compile(
    r"^(?:\$ )?(?:[A-Z_]+=\S+ )*"
    r"(?:prime-megatron|make|python[\d.]*|\S+/bin/python|torchrun|srun|sbatch|kubectl|docker|pip)\s+[\w./-]"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """Of its opening fence, from 1."""
    language: str
    title: str | None
    marks: tuple[tuple[str, str], ...]
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def mark(self, name: str) -> str | None:
        return dict(self.marks).get(name)

    def commands(self) -> list[str]:
        """The block's commands, continued lines joined, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [text for line in lines if (text := re.sub(r"(^|\s)#.*$", "", line).strip())]

    def simple_commands(self) -> list[str]:
        """The same cut at `;`, `&&` and pipes, the variables that the block sets put in."""
        values: dict[str, str] = {}
        found = []
        for command in self.commands():
            for part in re.split(r" (?:&&|\|) |; ", command):
                words = shlex.split(part)
                if all(re.fullmatch(r"[A-Z]+=.*", word) for word in words):
                    values.update(word.split("=", 1) for word in words)
                else:
                    found.append(re.sub(r"\$([A-Z]+)", lambda name: values[name[1]], part))
        return found


def pages() -> list[str]:
    """README, CONTRIBUTING and the pages of docs/ that are written by hand."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(page for page in found if not page.startswith("docs/reference/"))]


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page in their order.

    Raises:
        ValueError: a fence that is never closed, a mark that stands above no block.
    """
    blocks: list[Block] = []
    marks: list[tuple[str, str]] = []
    lines = iter(enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if mark := _MARK.match(line):
            marks.append((mark[1], mark[2]))
        elif line.startswith("```"):
            fence = _FENCE.match(line)
            if fence is None:
                raise ValueError(f"{page}:{number}: not a fence as the other pages have it: {line}")
            text = "\n".join(_inside(lines, f"{page}:{number}"))
            blocks.append(Block(page, number, fence[1], fence[2], tuple(marks), text))
            marks = []
        elif marks:
            raise ValueError(f"{page}:{number}: a mark stands above no block")
    return blocks


def _inside(lines: Iterator[tuple[int, str]], where: str) -> Iterator[str]:
    for _, line in lines:
        if line == "```":
            return
        yield line
    raise ValueError(f"{where}: the block is never closed")


def outside_fences(page: str) -> Iterator[tuple[int, str]]:
    """The lines of a page that are in no block, with their numbers."""
    inside = False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def words_of(command: str) -> list[str]:
    """A command's words without the variables that are set before it."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words
