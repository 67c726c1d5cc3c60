"""Pictures as SVG, by matplotlib: they need no script, and their colours are the page's, light or dark.

matplotlib draws in colours that stand for the page's variables (`_variable`); text stays text in the page's own font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prime_megatron.errors import InputError

NUM_COLOURS = 8
"""Series that are told apart by colour (Okabe and Ito's, which colour-blind people can tell)."""
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
SIZE = (400, 190)
"""Of a picture, in CSS pixels at its natural width."""
FONT_SIZE = 10.0
_NAMES = ("text", "grid", "level", "page", "positive", "negative")


@dataclass(frozen=True)
class Drawing:
    """A picture, and where its data lies in it."""

    svg: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the axes, as shares of the picture."""
    span: tuple[float, float]
    """The steps at its left and right end."""


def series(index: int) -> str:
    """The colour of a series, for matplotlib."""
    return f"#00fe{index % NUM_COLOURS:02x}"


def named(name: str) -> str:
    """A colour by its name on the page, for matplotlib."""
    return f"#00fe{0x80 + _NAMES.index(name):02x}"


def draw(paint: Callable[[Any], None], key: str, *, size: tuple[int, int] = SIZE) -> Drawing:
    """A picture with one pair of axes.

    Args:
        paint: draws on the axes.
        key: a word for this picture alone, from which its ids are made.
        size: in CSS pixels.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the pictures need matplotlib; run: pip install 'prime-megatron[report]'") from None
    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": key, "font.size": FONT_SIZE, "path.simplify_threshold": 0.2,
        "text.parse_math": False,  # a name with a dollar is a name
        "figure.constrained_layout.w_pad": 0.03, "figure.constrained_layout.h_pad": 0.03,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        _dress(axes)
        paint(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True)
        place = axes.get_position()
    left, right = axes.get_xlim()
    return Drawing(_for_page(out.getvalue()), (place.x0, 1 - place.y1, place.x1, 1 - place.y0), (left, right))


def scaled(axes: Any, values: Sequence[float], *, log: bool) -> None:
    """A logarithmic axis where that is wanted and the values allow it; else one without an offset in its labels."""
    positive = [value for value in values if value > 0.0]
    if log and positive:
        axes.set_yscale("log", nonpositive="mask")
        if math.log10(max(positive) / min(positive)) < 1.0:
            axes.set_ylim(min(positive) / 2, max(positive) * 2)
    else:
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 5))
        if values and min(values) == max(values):
            room = abs(values[0]) * 0.1
            axes.set_ylim(*((values[0] - room, values[0] + room) if room else (-0.05, 1.0)))


def _dress(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(named("grid"))
    axes.tick_params(colors=named("text"), length=0)
    axes.grid(axis="y", color=named("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.margins(x=0.015)


def _for_page(svg: str) -> str:
    """Only the <svg>, without its own size, metadata, names of its parts, and digits that nobody sees."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z.]+\d*_\d+"', "", svg)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'="[^"]*"', lambda match: re.sub(r"(\d\.\d)\d+", r"\1", match[0]), svg)
    svg = re.sub(r"(font: \d+px) [^;\"]*", r"\1 var(--font)", svg)
    svg = re.sub(r"#00fe([0-9a-f]{2})", _variable, svg)
    return re.sub(r"\s*\n\s*", " ", svg).strip()


def _variable(match: re.Match[str]) -> str:
    number = int(match[1], 16)
    return f"var(--{_NAMES[number - 0x80]})" if number >= 0x80 else f"var(--c{number})"
