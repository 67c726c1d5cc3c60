r"""Multiple choice in its written forms: (A) A. A: A) [A], bold or roman ($\mathrm{(A)}$), in lines or in a row.

Letters are choices where A, B and C stand in this order in one form, each before a text of its own. Points, sets,
angles, events and sentences that end in a letter are none.
"""

from __future__ import annotations

import re
import unicodedata

CHOICE = "choice"
Mark = tuple[int, int, str]
"""(start, end, letter) of a choice's letter with its brackets."""
_LETTERS = "ABCDEFGH"
_DRESS = re.compile(
    r"\\(?:mathrm|mathbf|textbf|textrm|textit|textsf|text|mathsf|mathit|bf|rm|it|boldsymbol|bold|hbox|mbox|qquad|quad|hspace\{[^{}]*\}"
    r"|hskip\s*\S+|left|right|big|Big|item|displaystyle|enspace|thinspace|[ ,;:!])(?![a-zA-Z])"
    r"|[${}~*_]|\\(?=\()|</?(?:b|i|u|em|strong)>"
)
_CIRCLED = {ord(circle): f"({letter})" for circle, letter in zip("ⒶⒷⒸⒹⒺⒻⒼⒽ", "ABCDEFGH", strict=True)}
_PICTURE = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)|\\begin\{(asy|tikzpicture)\}.*?(?:\\end\{\1\}|\Z)", re.DOTALL)
_NEWLINES = re.compile(r"\\\\|\\newline\b|<br\s*/?>|\\par\b")
# Each finds a letter in one form; the lookbehinds keep function values f(A), initials and longer names out.
_FORMS = {
    "(A)": re.compile(r"(?<![A-Za-z)'’\\])\s?\(\s*([A-H])\s*[.:]?\s*\)"),
    "A)": re.compile(r"(?<![A-Za-z0-9(\\'’])([A-H])\s*\)"),
    "A.": re.compile(r"(?<![A-Za-z0-9(\\'’.^])([A-H])\s*[.、．](?!\d*\.[A-Z])"),
    "A:": re.compile(r"(?<![A-Za-z0-9(\\'’.^])([A-H])\s*[:：](?!=)"),
    "[A]": re.compile(r"(?<![A-Za-z0-9\\])\[\s*([A-H])\s*\]"),
    "A-": re.compile(r"(?:(?<=\n)|^)\s*([A-H])\s*[-–—]\s+"),
    "A ": re.compile(r"(?:(?<=\n)|^)[ \t]*([A-H])[ \t]+(?=\S)"),
}
_LOWER = re.compile(r"(?<![A-Za-z0-9)\\])\(\s*([a-h])\s*\)|(?:(?<=\s)|^)([a-h])\s?[).](?=\s)")
_TASK = re.compile(
    r"\W*(?:find|compute|determine|calculate|show|prove|what|how|evaluate|solve|draw|give|state|write|is|are|if|explain)\b",
    re.IGNORECASE,
)
# A word before the letter that makes it a name: "point A.", "from A.", "events A: ...".
_NAMED = re.compile(
    r"\b(?:points?|from|to|at|of|through|and|vert(?:ex|ices)|angles?|sides?|sets?|events?|cit(?:y|ies)|towns?|players?|teams?|person|persons|people|"
    r"boxes|box|urns?|bags?|lines?|planes?|circles?|triangles?|places?|stations?|villages?|class|grade|type|matri(?:x|ces)|jars?|cups?|by|with|than|in|let|"
    r"machines?|workers?|group|groups|section|part|car|cars|train|trains|ship|factory|pipe|pipes|store|company|brand|plan|school)\s*$",
    re.IGNORECASE,
)
_OPTION = re.compile(r"\b(?:option|choice|answer)\s*$", re.IGNORECASE)
_OWN = re.compile(
    r"\b(?:points?|vert(?:ex|ices)|angles?|sets?|events?|matri(?:x|ces)|circles?|lines?|planes?)\s*$", re.IGNORECASE
)
_WHICH = re.compile(
    r"\bwhich (?:one )?(?:of|among|option|choice|answer)\b"
    r"|\b(?:choose|select|pick|mark|circle)\b.{0,40}\b(?:option|answer|choice|letter|correct|following)s?\b"
    r"|\bmultiple[- ]choice\b|\banswer choices?\b|\boptions?\s*(?:are|:)",
    re.IGNORECASE | re.DOTALL,
)


def choice(text: str, truth: str | None = None) -> str | None:
    """The form of the choices in a problem; ``truth``: a letter makes two choices enough."""
    least = 2 if truth is not None and re.fullmatch(r"\W*(?:\\text\w*\W*)?[A-H]\W*", truth.strip()) else 3
    found = _choices(text, least)
    if found is not None:
        form, marks, _ = found
        return f"choices {', '.join(mark[2] for mark in marks)} in the form {form}"
    if truth is not None and least == 2 and _WHICH.search(text):
        return "asks which of several, and its answer is a letter"
    return None


def options_of(text: str) -> dict[str, str]:
    """The options by letter, without fonts and dollars; {} where there are none."""
    found = _choices(text, 2)
    if found is None:
        return {}
    _, marks, plain = found
    ends = [mark[0] for mark in marks[1:]] + [len(plain)]
    return {mark[2]: plain[mark[1] : end].strip(" \t\n,;.") for mark, end in zip(marks, ends, strict=True)}


def _choices(text: str, least: int) -> tuple[str, list[Mark], str] | None:
    """(form, the marks of the choices, the text that they stand in)."""
    plain = unicodedata.normalize("NFKC", text.translate(_CIRCLED))
    large = "A" in plain and "B" in plain
    small = ("a)" in plain or "a." in plain) and ("d)" in plain or "d." in plain)
    if not large and not small:
        return None  # cheap, and most problems end here
    plain = undressed(plain)
    for form, pattern in _FORMS.items() if large else ():
        marks = _in_order(plain, form, [(m.start(), m.end(), m[1]) for m in pattern.finditer(plain)], least)
        if marks:
            return form, marks, plain
    lower = [(m.start(), m.end(), (m[1] or m[2]).upper()) for m in _LOWER.finditer(plain)] if small else []
    marks = _in_order(plain, "(a)", lower, 4)
    return ("(a)", marks, plain) if marks and _are_short(plain, lower) and _asks_to_choose(plain, lower) else None


def undressed(text: str) -> str:
    """The text without drawings, fonts, spacing commands and dollars, line breaks as line breaks."""
    plain = text.replace("\r\n", "\n")
    return _DRESS.sub(" ", _NEWLINES.sub("\n", _PICTURE.sub("\n", plain)))


def _in_order(text: str, form: str, marks: list[Mark], least: int) -> list[Mark]:
    """The marks from A on that stand in order, each with a text behind it; [] where they are too few."""
    for first, (start, _, letter) in enumerate(marks):
        if letter != "A" or not _may_begin(text, form, start):
            continue
        chain = [marks[first]]
        for mark in marks[first + 1 :]:
            wanted = _LETTERS[len(chain)] if len(chain) < len(_LETTERS) else ""
            if mark[2] == wanted and _has_text(text[chain[-1][1] : mark[0]], form) and _may_follow(text, form, mark[0]):
                chain.append(mark)
        if len(chain) >= least and _has_text(text[chain[-1][1] :], form):
            return chain
    return []


def _has_text(between: str, form: str) -> bool:
    """Whether an option stands there: not nothing, as in the ratio A:B:C, and no operator, as between (A) and (B)."""
    words = between.strip(" \t\n,;.&|")
    if form == "(A)":
        words = words.removeprefix(":").strip()
    return (
        bool(words)
        and re.fullmatch(r"(?:\\?(?:cup|cap|times|cdot|to|in|and|or|vs)|[-+*/=<>×·∪∩→,]|[=:].{0,3})\s*", words) is None
    )


def _may_begin(text: str, form: str, start: int) -> bool:
    before = _OPTION.sub("", text[:start])
    if form == "A)" and _open_brackets(before):
        return False
    if form == "(A)" and before[-1:].isdigit():  # a product
        return False
    if form in ("A.", "A:", "A)", "A "):
        line = before.rpartition("\n")[2]
        return not _NAMED.search(line[-40:]) and (
            not line.strip() or line.rstrip()[-1:] in ".?!:;,)(]_=" or line.endswith("  ") or _ends_in_math(line)
        )
    return not _OWN.search(before[-40:])


def _may_follow(text: str, form: str, start: int) -> bool:
    before = text[:start]
    if form == "A)" and _open_brackets(before):
        return False
    return form not in ("A.", "A:") or not re.search(
        r"\b(?:points?|from|to|at|through|and|vertex|angle|set|event|city|town|player|team)\s*$",
        before[-20:],
        re.IGNORECASE,
    )


def _ends_in_math(line: str) -> bool:
    return re.search(r"(?:\d|[=^+\-*/)]|\b(?:is|are|equals?|by|of|be|to))\s*$", line) is not None


def _open_brackets(before: str) -> bool:
    line = before.rpartition("\n")[2]
    return line.count("(") > line.count(")")


def _are_short(text: str, marks: list[Mark]) -> bool:
    """Whether the options are, which parts of a question are not: (a) Find ... (b) Show ..."""
    ends = [mark[0] for mark in marks[1:]] + [len(text)]
    return all(
        len(text[mark[1] : end].split()) <= 8
        and "?" not in text[mark[1] : end]
        and not _TASK.match(text[mark[1] : end])
        for mark, end in zip(marks, ends, strict=True)
    )


def _asks_to_choose(text: str, marks: list[Mark]) -> bool:
    return (
        "?" in text[: marks[0][0]]
        or text[: marks[0][0]].rstrip()[-1:] in ":"
        or bool(_WHICH.search(text[: marks[0][0]]))
    )
