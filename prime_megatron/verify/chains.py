r"""What a chain of relations gives as its value: x = 5 is 5, 6 \cdot 7 = 42 is 42, 41 = 42 is both and so neither."""

from __future__ import annotations

from dataclasses import dataclass

from prime_megatron.verify.certainty import Leaf
from prime_megatron.verify.forms import Form, Relation, read_form
from prime_megatron.verify.names import is_closed, is_name
from prime_megatron.verify.normalize import normalize, plain_number


@dataclass(frozen=True)
class Value:
    """forms: what all have to be equal to the other side's. name: what they are the value of, "" without a name."""

    forms: tuple[Form, ...]
    name: str = ""


def value_of(form: Form, leaf: Leaf) -> Value | None:
    """The value of a form; None for an equation or an inequality, which has none."""
    if not isinstance(form, Relation):
        return Value((form,))
    sides, operators = form.sides, set(form.operators)
    if operators == {"="} and len(sides) == 2 and is_name(sides[1]) and is_closed(sides[0]):
        sides = (sides[1], sides[0])
    if is_name(sides[0]):
        if operators == {"\\in"} and len(sides) == 2:
            return Value((read_form(sides[1]),), normalize(sides[0]))
        if operators <= {"=", "\\approx"}:
            return _named(normalize(sides[0]), sides[1:], form.operators[1:], leaf)
        return None
    if operators <= {"=", "\\approx"} and all(is_closed(side) for side in sides):
        return _closed(sides, form.operators, leaf)
    return None


def _named(name: str, sides: tuple[str, ...], operators: tuple[str, ...], leaf: Leaf) -> Value | None:
    """After the name: the last side counts, and what is worked out before it has to agree."""
    if "\\approx" in operators:
        closed = _closed(sides, operators, leaf)
        return closed and Value(closed.forms, name)
    checked = tuple(side for side in sides[:-1] if is_closed(side))
    return Value(tuple(read_form(side) for side in (*checked, sides[-1])), name)


def _closed(sides: tuple[str, ...], operators: tuple[str, ...], leaf: Leaf) -> Value | None:
    r"""Numbers in a chain: all of them; where the last is a rounding (\frac{22}{7} \approx 3.14) those before it."""
    if "\\approx" not in operators:
        return Value(tuple(read_form(side) for side in sides))
    exact, rounded = sides[:-1], plain_number(normalize(sides[-1]))
    if operators[-1] != "\\approx" or "\\approx" in operators[:-1] or rounded is None:
        return None
    if any(plain_number(normalize(side)) is not None and "frac" not in side for side in exact):
        return None  # two plain numbers: 41 \approx 42 offers both
    return Value(tuple(read_form(side) for side in exact))
