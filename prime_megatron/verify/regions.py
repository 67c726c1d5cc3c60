r"""Intervals, inequalities and their unions as spans of the real line: 0<x<7.5 is (0, 7.5), x \ne 2 lacks a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.verify.certainty import Leaf, every, pair_off
from prime_megatron.verify.forms import Expression, Form, Group, Relation, Several, Words, read_form
from prime_megatron.verify.names import is_name
from prime_megatron.verify.normalize import normalize
from prime_megatron.verify.splitting import split_command


@dataclass(frozen=True)
class Span:
    """low, high: LaTeX, None where there is no end. low_in, high_in: whether the end belongs to it."""

    low: str | None
    low_in: bool
    high: str | None
    high_in: bool


LINE = Span(None, False, None, False)
_ALL_WORDS = frozenset(
    ("all real numbers", "all reals", "all real x", "real numbers", "every real number", "the real numbers")
)
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}


def _is_variable(text: str) -> bool:
    """Whether the text is a name that a line can be drawn of; |x| < 2 is not about a name."""
    return is_name(text) and "|" not in text


def is_region(form: Form) -> bool:
    """Whether the answer can only be meant as part of the line (a pair in brackets may be a point)."""
    if isinstance(form, Several):
        if form.joined == "\\cup":
            return any(isinstance(item, Group) and item.kind != "{}" for item in form.items)
        return any(isinstance(item, Relation) and is_region(item) for item in form.items)
    if isinstance(form, Words):
        return form.text in _ALL_WORDS
    if isinstance(form, Expression):
        return _is_line(form.text) or ("\\mathbb" in form.text and "\\setminus" in form.text)
    if isinstance(form, Group):
        return _builder(form) is not None or (
            form.kind in ("(]", "[)", "()", "[]") and len(form.items) == 2 and any(_infinite(i) for i in form.items)
        )
    return isinstance(form, Relation) and not set(form.operators) <= {"=", "\\approx", "\\in"}


def spans_of(form: Form) -> tuple[Span, ...] | None:
    """The spans, or None where the answer is no part of the line."""
    if isinstance(form, Words):
        return (LINE,) if form.text in _ALL_WORDS else None
    if isinstance(form, Expression):
        return _punctured(form.text)
    if isinstance(form, Relation):
        return _of_relation(form)
    if isinstance(form, Group):
        return _of_group(form)
    if isinstance(form, Several):
        parts = [spans_of(item) for item in form.items]
        if any(part is None for part in parts):
            return None
        spans = tuple(span for part in parts if part is not None for span in part)
        return spans if form.joined in ("or", "\\cup", ",") else None
    return None


def equal_regions(gold: Sequence[Span], given: Sequence[Span], leaf: Leaf) -> bool | None:
    """The same spans in any order; None where it is not certain."""
    if len(gold) != len(given):
        return None
    return pair_off(gold, given, lambda a, b: _equal_spans(a, b, leaf))


def _equal_spans(a: Span, b: Span, leaf: Leaf) -> bool | None:
    if (a.low_in, a.high_in) != (b.low_in, b.high_in):
        return False
    return every(_equal_ends(x, y, leaf) for x, y in ((a.low, b.low), (a.high, b.high)))


def _equal_ends(a: str | None, b: str | None, leaf: Leaf) -> bool | None:
    return a is b if a is None or b is None else leaf(a, b)


def _is_line(text: str) -> bool:
    return normalize(text) in ("\\mathbb{R}", "\\mathbbR", "\\R", "\\Re", "\u211d")


def _punctured(text: str) -> tuple[Span, ...] | None:
    """The line, or the line without some points."""
    whole, *missing = split_command(text, ("\\setminus", "\\backslash"))
    if not _is_line(whole) or len(missing) > 1:
        return None
    if not missing:
        return (LINE,)
    points = read_form(missing[0])
    if not isinstance(points, Group) or points.kind != "{}" or len(points.items) != 1:
        return None
    (point,) = points.items
    return _without(point.text) if isinstance(point, Expression) else None


def _without(point: str) -> tuple[Span, ...]:
    return Span(None, False, point, False), Span(point, False, None, False)


def _end(form: Form) -> tuple[bool, str | None] | None:
    """(True, LaTeX or None for infinity) of one end; None where it is none."""
    if not isinstance(form, Expression):
        return None
    return True, None if _infinite(form) else form.text


def _infinite(form: Form) -> bool:
    return isinstance(form, Expression) and normalize(form.text).lstrip("+-") == "\\infty"


def _of_group(form: Group) -> tuple[Span, ...] | None:
    builder = _builder(form)
    if builder is not None:
        return _of_relation(builder)
    if form.kind == "{}":
        ends = [_end(item) for item in form.items]
        if any(end is None or end[1] is None for end in ends):
            return None
        return tuple(Span(end[1], True, end[1], True) for end in ends if end is not None)
    if len(form.items) != 2:
        return None
    low, high = _end(form.items[0]), _end(form.items[1])
    if low is None or high is None:
        return None
    low_in, high_in = form.kind[0] == "[" and low[1] is not None, form.kind[1] == "]" and high[1] is not None
    return (Span(low[1], low_in, high[1], high_in),)


def _builder(form: Group) -> Relation | None:
    r"""The relation of a set such as \{x \mid x > 3\} or \{x \in \mathbb{R} : x > 3\}."""
    if form.kind != "{}" or len(form.items) != 1:
        return None
    (item,) = form.items
    text = getattr(item, "text", None)
    if isinstance(item, Relation):
        sides = item.sides
        for mark in ("|", ":"):
            head, found, rest = sides[0].rpartition(mark)
            if found and _is_variable(head):
                return Relation((rest.strip(), *sides[1:]), item.operators)
            if item.operators[0] == "\\in" and len(sides) > 2:
                head, found, rest = sides[1].rpartition(mark)
                if found and _is_line(head):
                    return Relation((rest.strip(), *sides[2:]), item.operators[1:])
    if text is None:
        return None
    head, *rest = split_command(text, ("\\mid", "\\vert"))
    if len(rest) != 1 or not _is_variable(split_command(head, ("\\in",))[0]):
        return None
    inner = read_form(rest[0])
    return inner if isinstance(inner, Relation) else None


def _of_relation(form: Relation) -> tuple[Span, ...] | None:
    """x < a, a < x < b and their like, for any name x."""
    sides, operators = form.sides, form.operators
    if operators == ("\\in",) and _is_variable(sides[0]):
        return spans_of(read_form(sides[1]))
    if len(sides) == 2:
        if _is_variable(sides[0]):
            name_first, other, operator = True, sides[1], operators[0]
        elif _is_variable(sides[1]):
            name_first, other, operator = False, sides[0], operators[0]
        else:
            return None
        if operator == "\\ne":
            return _without(other)
        if operator not in _FLIPPED or _is_infinite_text(other):
            return (LINE,) if operator in _FLIPPED and _is_infinite_text(other) else None
        return (_half_line(other, operator if name_first else _FLIPPED[operator]),)
    if len(sides) == 3 and _is_variable(sides[1]) and all(operator in _FLIPPED for operator in operators):
        left, right = _half_line(sides[0], _FLIPPED[operators[0]]), _half_line(sides[2], operators[1])
        return _meet(left, right)
    return None


def _is_infinite_text(text: str) -> bool:
    return normalize(text).lstrip("+-") == "\\infty"


def _half_line(end: str, operator: str) -> Span:
    """All x with `x operator end`."""
    if _is_infinite_text(end):
        return LINE
    if operator in ("<", "\\le"):
        return Span(None, False, end, operator == "\\le")
    return Span(end, operator == "\\ge", None, False)


def _meet(left: Span, right: Span) -> tuple[Span, ...] | None:
    """Of two half lines that bound each other: a < x < b, or a > x > b."""
    if left.low is None and right.high is None:
        left, right = right, left
    if left.high is not None or right.low is not None:
        return None
    return (Span(left.low, left.low_in, right.high, right.high_in),)
