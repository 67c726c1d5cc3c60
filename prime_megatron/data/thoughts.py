"""Templates that open a thought: where prompt and answer overlap, and whether an answer fits behind its prompt."""

from __future__ import annotations

import re

_OPENER = re.compile(r"([<\[◁]\|?)((?:begin_of_)?[\w:]*(?:think|thought|reason)\w*)(\|?[>\]▷])", re.IGNORECASE)
"""<think>, <thinking>, [THINK], <|begin_of_thought|> and the like, never their closing forms."""
_PIECE = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\s+|\w+|.", re.DOTALL)


def learned_text(prompt: str, whole: str, answer: str, start: int, *, fields: bool) -> str | None:
    """What is learned behind `prompt`; None where every reading leaves the answer inside an open thought.

    It is `whole` minus its longest common beginning with `prompt`. Where the template cuts a part of the answer (past
    thoughts) or opens a thought that the answer opens, too, it is the answer minus what the prompt has of it already.

    Args:
        prompt: the chat before the answer, rendered with the generation prompt.
        whole: the chat with the answer, rendered.
        answer: the answer as the row has it.
        fields: whether the answer has more than this text (a thought of its own field, calls): only the template can
            write it.
        start: where the answer's turn begins in `prompt`: the length of what the chat before it renders to.
    """
    common = common_beginning(prompt, whole)
    kept = _squashed(answer) in _squashed(whole[min(start, common) :])
    readings = [whole[common:]] if kept and common >= start else []
    if not fields:
        readings.append(answer[_overlap(prompt[start:], answer) :])
    return next((text for text in readings if fits(prompt[start:], text)), None)


def common_beginning(prompt: str, whole: str) -> int:
    """Characters of `prompt` that `whole` begins with; where that is not all of it, up to the end of a whole piece of
    the prompt (a tag, a word, a run of spaces): "<th" is no part of both "<think>" and "<there>"."""
    if whole.startswith(prompt) or prompt.startswith(whole):
        return min(len(prompt), len(whole))
    length = next(i for i, (a, b) in enumerate(zip(prompt, whole)) if a != b)
    end = 0
    for piece in _PIECE.finditer(prompt):
        if piece.end() > length:
            break
        end = piece.end()
    return end


def fits(turn: str, answer: str) -> bool:
    """Whether the answer closes the thought that the beginning of its turn opens, and opens it no second time."""
    openers = list(_OPENER.finditer(turn))
    if not openers:
        return True
    opener = openers[-1].group()
    closer = _closer(openers[-1])
    closes = answer.find(closer)
    opened_again = 0 <= answer.find(opener) < closes
    if closer in turn[openers[-1].end() :]:
        return closes < 0 or opened_again
    return closes >= 0 and not opened_again


def _overlap(turn: str, answer: str) -> int:
    """Characters that the answer begins with and the turn, which opens a thought, ends with."""
    openers = list(_OPENER.finditer(turn))
    if not openers:
        return 0
    opened = turn[openers[-1].start() :]
    for text in (opened, opened.rstrip()):
        if answer.startswith(text):
            return len(text)
    return 0


def _closer(opener: re.Match[str]) -> str:
    left, name, right = opener.groups()
    if name.lower().startswith("begin_of_"):
        return f"{left}end_of_{name[len('begin_of_') :]}{right}"
    return f"{left}/{name}{right}"


def _squashed(text: str) -> str:
    return "".join(text.split())
