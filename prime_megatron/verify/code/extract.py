"""The program in a response: the last fenced block of Python."""

import re

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^`\s]*)[^`]*")
PYTHON = frozenset({"python", "python3", "py", "py3"})


def extract_code(response: str) -> str | None:
    """The last block labelled as Python; the last unlabelled one where there is none; else None.

    A block opens with three or more backticks (or tildes) at the start of a line, indented or not, and closes with as
    many on a line of their own; one that never closes was cut off and is none. Linear in the response.
    """
    labelled = unlabelled = None
    fence, label, indent = "", "", 0
    lines: list[str] = []
    for line in response.split("\n"):
        line = line.removesuffix("\r")
        if not fence:
            opening = _FENCE.fullmatch(line)
            if opening:
                fence, label = opening[1], opening[2].lower()
                indent, lines = len(line) - len(line.lstrip()), []
            continue
        bare = line.strip()
        if bare.startswith(fence) and not bare.strip(fence[0]):
            code = "\n".join(lines) + "\n"
            if label in PYTHON:
                labelled = code
            elif not label:
                unlabelled = code
            fence = ""
        else:
            lines.append(line[min(indent, len(line) - len(line.lstrip())) :])
    return labelled if labelled is not None else unlabelled
