"""The program in a response: the last fenced block of Python."""

PYTHON = frozenset({"python", "python3", "py", "py3"})
_LEAST_FENCE = 3


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
        text = line.lstrip(" \t")
        if not fence:
            fence, label = _opening(text)
            indent, lines = len(line) - len(text), []
        elif text.startswith(fence) and not text.strip(fence[0] + " \t"):
            code = "\n".join(lines) + "\n"
            if label in PYTHON:
                labelled = code
            elif not label:
                unlabelled = code
            fence = ""
        else:
            lines.append(line[min(indent, len(line) - len(text)) :])
    return labelled if labelled is not None else unlabelled


def _opening(text: str) -> tuple[str, str]:
    """(fence, label in small letters) of a line that opens a block; ("", "") of another."""
    mark = text[:1]
    if mark not in ("`", "~"):
        return "", ""
    info = text.lstrip(mark)
    length = len(text) - len(info)
    if length < _LEAST_FENCE or (mark == "`" and "`" in info):
        return "", ""
    words = info.split(maxsplit=1)
    return mark * length, words[0].lower() if words else ""
