r"""One spelling for LaTeX, Unicode and plain-text mathematics: what structure and computer algebra are read from.

`respell` keeps what an answer says and changes how it is written: \nicefrac, sqrt(3)/2, 0.\overline{3}, x**2, 1.2e3.
"""

import re

from prime_megatron.verify.normalize import to_ascii_math

_TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|bold)"
_TEXT = re.compile(_TEXT_COMMAND + r"\s*\{([^{}]*)\}")
_BARE_FRAC = re.compile(r"\\(?:nice|s|d|t|c)frac(?![a-zA-Z])")
_COLOR = re.compile(r"\\(?:textcolor|color)\s*\{[A-Za-z0-9!., #]*\}\s*")
_UNDERLINE = re.compile(r"\\(?:underline|ensuremath|displaystyle|textstyle|mathop)(?![a-zA-Z])\s*")
_SIZING = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|bf|it|rm|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge)(?![a-zA-Z])"
)
_DELIMITERS = re.compile(r"\\[()\[\]]")
_TEX_SPACE = re.compile(r"(?<!\\)(?:\\[,;:! ]|\\q?quad(?![a-zA-Z]))|~")
_RELATIONS = {
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">",
    "langle": "(", "rangle": ")",
    "varnothing": "emptyset", "lbrace": "{", "rbrace": "}", "doteq": "approx", "simeq": "approx",
}  # fmt: skip
_RELATION = re.compile(r"\\(" + "|".join(sorted(_RELATIONS, key=len, reverse=True)) + r")(?![a-zA-Z])")
_REPEATING = re.compile(
    r"([0-9]*)\.([0-9]*)(?:\\overline\s*\{([0-9]+)\}|\\dot\s*\{?([0-9])\}?(?:([0-9]*)\\dot\s*\{?([0-9])\}?)?)"
)
_SEGMENT = re.compile(r"\\overline\s*\{([A-Z]{2,4})\}")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z0-9.\\_^{])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([+-]?[0-9]{1,5})(?![A-Za-z0-9.])")
_FUNCTION = re.compile(
    r"(?<![A-Za-z\\])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln)(?=[\s(^_0-9]|$)"
)
_CONSTANT = re.compile(r"(?<![A-Za-z\\])(pi|theta|alpha|beta|gamma|lambda|infinity|infty|inf|oo)(?![A-Za-z])")
_CALL = re.compile(r"(?<![A-Za-z\\])(sqrt|exp|abs)\s*\(")
_ANGLE = re.compile(r"\\(sin|cos|tan|cot|sec|csc)\s*(\(?)\s*([0-9.]+)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(\)?)")
_ASCII = (
    ("**", "^"), ("*", "\\cdot "), ("<=", "\\le "), (">=", "\\ge "), (" != ", "\\ne "), ("+/-", "\\pm "),
    ("=>", "\\Rightarrow "), ("->", "\\to "),
)  # fmt: skip
_PLUS_MINUS = re.compile(r"\+\s*-\s*(?=[0-9.\\a-zA-Z(])")
_LEAD_IN = re.compile(
    r"\s*(?:\\text\{)?\s*(?:(?:so|hence|thus|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|result|value|solution)"
    r"\s*(?:is|=|:)\s*:?\s*(?:\}\s*)?(?P<rest>.+)",
    re.IGNORECASE | re.DOTALL,
)  # fmt: skip
_LEADING = re.compile(r"^\s*(?:=|\\approx(?![a-zA-Z]))")
_DEGREES = re.compile(r"\\ang\s*\{([0-9.]+)\}")
_BASE = re.compile(r"^\s*([0-9A-Fa-f]+)\s*\\text\s*\{\s*(?:in\s+)?base\s*[}]?\s*([0-9]{1,2})\s*\}?\s*$")
_LINE_LESS = re.compile(r"(\\mathbb\s*\{?R\}?)\s*(?:-|\\backslash(?![a-zA-Z]))\s*(?=\\\{)")
_EMPTY = re.compile(r"\\\{\s*\\\}")


def respell(text: str) -> str:
    r"""The same answer in LaTeX of one kind. Words stay in \text{...}; linear in the length of the text."""
    text = _unwrap(to_ascii_math(text).strip())
    if "\\" in text or "~" in text or "{" in text:
        text = _commands(text)
    parts = _split_text(text)
    text = "".join(part if part.startswith("\\text{") else _plain(part) for part in parts)
    return _bare_letters(" ".join(text.split()))


def _unwrap(text: str) -> str:
    """Without math delimiters, a closing full stop and words that only announce the answer."""
    if text.endswith("\\n"):
        text = text[:-2].rstrip()
    lead = _LEAD_IN.fullmatch(text)
    if lead is not None:
        rest = lead["rest"]
        # A \text{ that the lead-in opened and the answer closes: \text{Answer: 42}.
        text = rest[:-1] if rest.endswith("}") and rest.count("}") > rest.count("{") else rest
    text = _DELIMITERS.sub(" ", text) if "\\(" in text or "\\[" in text else text
    if text.count("$") - text.count("\\$") > 0 and not re.fullmatch(r"\s*-?\$\s*[0-9][^$]*", text):
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = _LEADING.sub("", text).strip()
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("\\.") else text


def _commands(text: str) -> str:
    text = _BARE_FRAC.sub(r"\\frac", _SIZING.sub("", text))
    text = _UNDERLINE.sub("", _COLOR.sub("", text))
    text = _RELATION.sub(_relation, text)
    text = _LINE_LESS.sub(r"\1\\setminus ", _BASE.sub(r"\1_{\2}", _DEGREES.sub(r"\1^\\circ", text)))
    if "\\overline" in text or "\\dot" in text:
        text = _SEGMENT.sub(r"\1", _REPEATING.sub(_repeating, text))
    text = re.sub(r"(?<=[0-9])(?:\\,|\\!\s*|\\ |~)(?=[0-9]{3}(?![0-9]))", "", text)
    text = _TEX_SPACE.sub(" ", text).replace("{,}", "").replace("{:}", ":")
    text = _TEXT.sub(r"\\text{\1}", text)
    text = re.sub(r"(\^\s*\{?\s*\\circ\s*\}?)\s*([CF])$", r"\1\\text{\2}", text)
    text = _ANGLE.sub(r"\\\1(\3\\pi/180)", text)
    return _EMPTY.sub(r"\\emptyset ", text)


def _relation(match: re.Match[str]) -> str:
    name = _RELATIONS[match[1]]
    return name if name in "<>()" else f"\\{name}" if name in "{}" else f"\\{name} "


def _repeating(match: re.Match[str]) -> str:
    whole, fixed = match[1] or "0", match[2]
    cycle = match[3] or (match[4] + (match[5] or "") + (match[6] or ""))
    nines = "9" * len(cycle) + "0" * len(fixed)
    value = int(whole + fixed + cycle) - int(whole + fixed)
    return f"\\frac{{{value}}}{{{nines}}}"


def _split_text(text: str) -> list[str]:
    return re.split(r"(\\text\{[^{}]*\})", text) if "\\text{" in text else [text]


def _plain(text: str) -> str:
    """Plain-text mathematics outside \\text{}."""
    for written, meant in _ASCII:
        if written in text:
            text = text.replace(written, meant)
    if not re.search(r"[A-Za-z]{2}|[0-9.][eE]|\+\s*-", text):
        return text
    text = _SCIENTIFIC.sub(r"\1\\times 10^{\2}", text)
    text = _FUNCTION.sub(r"\\\1 ", text)
    text = _CONSTANT.sub(_constant, text)
    return _PLUS_MINUS.sub("-", _calls(text))


def _constant(match: re.Match[str]) -> str:
    return "\\infty " if match[1] in ("infinity", "infty", "inf", "oo") else f"\\{match[1]} "


def _calls(text: str) -> str:
    """sqrt(...), exp(...) and abs(...) with their balanced brackets."""
    while (call := _CALL.search(text)) is not None:
        depth, end = 1, call.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            return text
        inside = text[call.end() : end - 1]
        written = {"sqrt": f"\\sqrt{{{inside}}}", "exp": f"e^{{{inside}}}", "abs": f"|{inside}|"}[call[1]]
        text = text[: call.start()] + written + text[end:]
    return text


def _bare_letters(text: str) -> str:
    r"""\text{x} is the letter x, and \text{42} the number, unless it follows a number as a unit does (12 \text{m})."""
    text = re.sub(r"\\text\{\s*([-+]?[0-9][0-9.,/]*)\s*\}", r" \1 ", text) if "\\text" in text else text
    if "\\text" not in text:
        return text.strip()

    def bare(match: re.Match[str]) -> str:
        before = text[: match.start()].rstrip()
        unit = before[-1:].isdigit() or before.endswith(("}", "\\pi", "\\circ"))
        return match[0] if unit and match[1] not in "eijkdx" else f" {match[1]} "

    return " ".join(re.sub(r"\\text\{\s*([A-Za-z])\s*\}", bare, text).split())
