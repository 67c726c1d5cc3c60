"""Problems that lean on a figure that is not there.

Words are matched whole, and a figure must be pointed at: "figure out", "significant figures", "the figure bounded by
two lines", "draw a diagram" and "the graph of f" point at none.
"""

from __future__ import annotations

import re

FIGURE = "figure"


def _one_of(words: str) -> str:
    """A pattern of any of the words; spaces part them, _ stands for white space within one."""
    patterns = [word.replace("_", r"\s+") for word in words.split()]
    return f"(?:{'|'.join(patterns)})"


_SEEN = _one_of("figures? fig\\b\\.? diagrams? pictures? illustrations?")
_ANY_PICTURE = _one_of(
    "figures? fig\\b\\.? diagrams? pictures? images? illustrations? drawings? sketch(?:es)? charts? graphs? photos? "
    "maps? grids? schemes?"
)
_SHAPE = _one_of(
    "region area triangle rectangle square circle polygon solid shape trapezoid hexagon pentagon grid graph cube net"
)
_SHOWN = _one_of("shown drawn pictured illustrated depicted displayed indicated sketched graphed plotted given")
_SIDE = r"(?:to|at|on)\s+(?:the\s+)?(?:right|left)"
_PLACE = _one_of(f"below above {_SIDE} next_to here attached provided accompanying")
_WHICH = _one_of(
    "following above below given attached accompanying adjoining adjacent next right left provided shown same first "
    "second third shaded two three four five"
)
_POINTING = _one_of("in on from by of see per to with consider using following use at than under shows?")
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # An image itself, in Markdown, HTML, LaTeX, Asymptote or TikZ.
        r"!\[[^\]\n]*\]\([^)\n]*\)|<image\b|\[(?:image|picture|figure|diagram)\b[^\[\]\n]{0,40}\]|"
        r"<img\b|\\includegraphics|\[asy\]|\\begin\{(?:asy|tikzpicture|picture)\}",
        r"https?://\S+\.(?:png|jpe?g|gif|svg)\b|https?://cdn\.mathpix\.com",
        # Figure 3, Fig. 1a, figures 2 and 3, Figure (a), Figure $1$.
        rf"\b{_SEEN}(?![a-z])\s*[(\[$~\\{{ ]*(?:\d|[a-d](?![a-z])|[ivx]+\b(?!\s+\w+\s+out))",
        # As shown in the figure; in this diagram; from the adjoining picture; see figure.
        rf"\b{_POINTING}\s+(?:the|this|these|that|each|our|an?)?\s*(?:{_WHICH}\s+)*{_SEEN}(?!\w)(?!\s*out\b)",
        # The figure, this drawing: what the reader is taken to see.
        rf"\b(?:the|this|these)\s+(?:{_WHICH}\s+)*(?:figure|diagram|drawing|illustration)s?\b(?!\s*out\b)",
        rf"\b(?:figures?|diagrams?|drawings?|illustrations?)\s+(?:\w+\s+)?{_SHOWN}\b",
        r"\b(?:the|this|each)\s+(?:picture|image|photo|chart|graph)s?\s+(?:below\s+|above\s+)?shows?\b",
        # Pictured below, the graph above, the region shown, a grid is shown at right.
        rf"\b{_ANY_PICTURE}\s+(?:(?:is|are|as)\s+)?(?:{_SHOWN}\s+)?{_PLACE}\b(?!\s+(?:the|an?|its|his|her)\b)",
        rf"\b{_SHAPE}s?\s+shown\b(?!\s+(?:that|to)\b)",
        rf"\b{_SHOWN}\s+(?:in\s+)?(?:the\s+)?"
        rf"(?:figure|diagram|picture|image|drawing|illustration|graph|chart|below|above|{_SIDE})\b(?!\s+by\b)",
        r"\b(?:as|is|are)\s+(?:pictured|depicted|illustrated)\b(?!\s+(?:as|by|with|on)\b)",
        r"\b(?:as shown|as drawn)\s*(?:[.,;:?!)]|$)",
        r"\b(?:following|accompanying|adjoining|attached)\s+(?:(?:bar|line|pie|circle)\s+)?"
        rf"{_ANY_PICTURE}(?!\w)(?!\s+(?:of|has|have)\b)",
        r"\bhow many (?:\w+\s+){0,4}(?:in|are (?:there )?in) (?:the|this) (?:picture|image|figure|drawing)\b",
    )
)  # fmt: skip
_KIND = _one_of("plane solid geometric geometrical closed planar bounded convex resulting similar congruent")
_MADE = _one_of(
    "formed bounded enclosed obtained generated defined determined described_by consisting composed made_up made_of "
    "whose represented_by on_the_(?:complex|coordinate)_plane cut_off symmetric called"
)
_OTHER_FIGURES = _one_of(
    "public historical sales financial annual monthly census father mother authority exact correct key official stick "
    "action significant"
)
# Digits, statistics, people, shapes that the text itself tells, pictures that the reader is to draw.
_NO_FIGURE = re.compile(
    r"\bfigur(?:e[sd]?|ing)\s+(?:(?:it|this|that|them)\s+)?out\b"
    rf"|\b{_OTHER_FIGURES}\s+figures?\b|\w-figures?\b|\b(?:two|three|four|five|six|seven|eight) figure\b"
    r"|\b(?:double|single) figures\b|\bfigures?\s+of\s+(?:speech|eight|merit)\b|\bfigure[- ](?:eight|skat\w*)\b"
    rf"|\b(?:the|an?|this|{_KIND})\s+(?:{_KIND}\s+)*figures?\s+(?:(?:that|which)\s+is\s+|is\s+)?{_MADE}\b"
    rf"|\b{_KIND}\s+figures?\b|\b(?:venn|tree|stem|box)\s+diagrams?\b(?!\s+(?:below|above|shown))"
    r"|\bdraw(?:s|n|ing)?\s+(?:an?|the)\s+(?:figure|diagram|picture|graph|sketch)\b"
    r"|\bin the picture\s+of\s+health\b|\bbig(?:ger)? picture\b"
    r"|\bgiven (?:by|the)\b(?!\s+(?:figure|diagram|picture|illustration|drawing)\b)",
    re.IGNORECASE,
)


_HINTS = (
    "fig", "diagram", "pict", "imag", "illustrat", "draw", "sketch", "chart", "graph", "photo", "map", "grid", "scheme",
    "shown", "depict", "display", "indicated", "plotted", "given", "asy", "http", "<img", "![",
)  # fmt: skip
"""One of these is in every text that a pattern could find anything in."""


def figure(text: str) -> str | None:
    """The words that lean on a figure; None: none do."""
    small = text.lower()
    if not any(hint in small for hint in _HINTS):
        return None
    told = _NO_FIGURE.sub(" ", text)
    for pattern in _PATTERNS:
        found = pattern.search(told)
        if found is not None:
            return f"says {' '.join(found[0].split())[:60]!r}"
    return None
