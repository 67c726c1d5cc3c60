"""Whether an answer says what the ground truth says, by their shapes; parts without a shape go to `leaf`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from prime_megatron.verify.certainty import Leaf, every, pair_off
from prime_megatron.verify.chains import value_of
from prime_megatron.verify.choices import match_choices, option_text
from prime_megatron.verify.forms import Expression, Form, Group, Ratio, Relation, Several, Unclear, Words, read_form
from prime_megatron.verify.names import is_closed, is_name, stem
from prime_megatron.verify.normalize import normalize, plain_number
from prime_megatron.verify.regions import equal_regions, is_region, spans_of
from prime_megatron.verify.units import factor_between

_SHORT_WORDS = frozenset(("no", "on", "not", "ton", "own", "won", "now", "even", "left", "felt", "true", "was", "saw"))


def match(gold: str, given: str, leaf: Leaf) -> bool | None:
    """True, False, or None where shapes do not decide. Both are respelled LaTeX."""
    choice = match_choices(gold, given)
    if choice is not None:
        return choice
    return _forms(read_form(option_text(gold) or gold), read_form(given), leaf)


def _forms(gold: Form, given: Form, leaf: Leaf) -> bool | None:
    if isinstance(gold, Unclear) and isinstance(given, Unclear) and normalize(gold.text) == normalize(given.text):
        return True
    if isinstance(gold, Unclear) or isinstance(given, Unclear):
        return None if isinstance(gold, Unclear) else False
    if is_region(gold) or is_region(given):
        a, b = spans_of(gold), spans_of(given)
        if a is not None and b is not None:
            return equal_regions(a, b, leaf)
    if isinstance(gold, Relation) or isinstance(given, Relation):
        return _relations(gold, given, leaf)
    if isinstance(gold, Ratio) and isinstance(given, Ratio):
        return _ratios(gold, given, leaf)
    if isinstance(gold, Words) and isinstance(given, Words):
        return True if gold.text == given.text else None if _may_be_products(gold, given) else False
    if isinstance(gold, Expression) and isinstance(given, Expression):
        listed = _listed(gold), _listed(given)
        if listed == (None, None):
            return _expressions(gold, given, leaf)
    return _collections(gold, given, leaf)


def _may_be_products(a: Words, b: Words) -> bool:
    """Two orders of the same few small letters: xy and yx."""
    few = len(a.text) < 5 and sorted(a.text) == sorted(b.text)
    return few and not (a.is_name or b.is_name or {a.text, b.text} & _SHORT_WORDS)


def _relations(gold: Form, given: Form, leaf: Leaf) -> bool | None:
    """At least one side is a relation."""
    a, b = value_of(gold, leaf), value_of(given, leaf)
    if a is None or b is None:
        # An equation or an inequality. It is no value: x^2 = 42 is not 42.
        closed = isinstance(gold, (Expression, Several, Group)) and _all_closed(gold)
        if isinstance(given, Relation) and isinstance(gold, (Group, Several)) and "=" not in given.operators:
            return None  # an inequality that is no plain interval, such as |x| < 2
        return False if b is None and closed else None
    if a.name and b.name and a.name != b.name:
        return None
    return every(_forms(x, y, leaf) for x in a.forms for y in b.forms)


def _all_closed(form: Form) -> bool:
    if isinstance(form, (Several, Group)):
        return all(_all_closed(item) for item in form.items)
    return isinstance(form, Expression) and is_closed(form.text)


def _expressions(gold: Expression, given: Expression, leaf: Leaf) -> bool | None:
    factor = factor_between(gold.unit, given.unit)
    if factor is None:
        return False
    if gold.is_percent or given.is_percent:
        return _percents(gold, given, leaf)
    return leaf(gold.text, _scaled(given.text, factor))


def _scaled(text: str, factor: Fraction) -> str:
    if factor == 1:
        return text
    number = plain_number(normalize(text))
    if number is not None:
        value = number.value * factor
        return f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator != 1 else str(value.numerator)
    return f"({text})\\cdot \\frac{{{factor.numerator}}}{{{factor.denominator}}}"


def _percents(gold: Expression, given: Expression, leaf: Leaf) -> bool | None:
    hundredth = Fraction(1, 100)
    if gold.is_percent == given.is_percent:
        return leaf(gold.text, given.text)
    if gold.is_percent:  # 35% asked for: 35 and 0.35 say it
        same, other = leaf(gold.text, given.text), leaf(_scaled(gold.text, hundredth), given.text)
        return True if same or other else None if None in (same, other) else False
    share = leaf(gold.text, _scaled(given.text, hundredth))
    number = plain_number(normalize(gold.text))
    if share or number is None or abs(number.value) < 1:
        return share
    same = leaf(gold.text, given.text)
    return True if same else None if None in (same, share) else False


def _ratios(gold: Ratio, given: Ratio, leaf: Leaf) -> bool | None:
    if len(gold.parts) != len(given.parts):
        return False
    numbers = [[plain_number(normalize(part)) for part in side.parts] for side in (gold, given)]
    clock = all(re.fullmatch(r"[0-5][0-9]", side.parts[-1]) for side in (gold, given))
    if clock or any(number is None or not number.value for side in numbers for number in side):
        return every(leaf(a, b) for a, b in zip(gold.parts, given.parts, strict=True))
    scales = {a.value / b.value for a, b in zip(*numbers, strict=True) if a is not None and b is not None}
    return len(scales) == 1


@dataclass(frozen=True)
class Listed:
    """Items side by side. ordered: as in a tuple. kind: of the brackets, "" without. names: of x = 2, y = 3."""

    items: tuple[Form, ...]
    ordered: bool
    kind: str
    names: tuple[str, ...] = ()


def _collections(gold: Form, given: Form, leaf: Leaf) -> bool | None:
    """Lists, sets and tuples, and one of these against something else."""
    a, b = _listed(gold), _listed(given)
    if a is None and b is None:
        return None
    if a is None or b is None:
        several, single = (a, given) if a is not None else (b, gold)
        assert several is not None
        if len(several.items) == 1 and several.kind == "{}":
            (item,) = several.items
            return _forms(item, given, leaf) if a is not None else _forms(gold, item, leaf)
        return False if _all_closed(single) and not _is_matrix(single) else None
    if a.names and b.names and set(a.names) == set(b.names):
        by_name = dict(zip(b.names, b.items, strict=True))
        return every(_forms(x, by_name[name], leaf) for name, x in zip(a.names, a.items, strict=True))
    if a.names and b.names and {stem(name) for name in a.names} != {stem(name) for name in b.names}:
        return None
    return _unnamed(a, b, leaf)


def _unnamed(a: Listed, b: Listed, leaf: Leaf) -> bool | None:
    if a.ordered != b.ordered:
        # A set is no tuple. Two numbers without brackets may be meant as the pair; a pair is no list of two.
        bare = b.kind == "" if a.ordered else bool(a.names)
        if not bare:
            return False
    if a.ordered or b.ordered:
        if len(a.items) != len(b.items):
            return False
        if len(a.items) == 2 and a.kind and b.kind and a.kind != b.kind:
            return False
        return every(_forms(x, y, leaf) for x, y in zip(a.items, b.items, strict=True))
    return pair_off(a.items, b.items, lambda x, y: _forms(x, y, leaf))


def _listed(form: Form) -> Listed | None:
    """The items of a list, a set, a tuple or a vector, or of a value with a plus-minus sign."""
    if isinstance(form, Group):
        if form.kind == "{}":
            return Listed(_spread(form.items), ordered=False, kind="{}")
        if len(form.items) == 1 and _is_matrix(form.items[0]):
            return _listed(form.items[0])
        return Listed(form.items, ordered=True, kind=form.kind) if len(form.items) > 1 else None
    if isinstance(form, Several):
        if form.joined == "\\cup":
            groups = [item for item in form.items if isinstance(item, Group) and item.kind == "{}"]
            items = tuple(item for group in groups for item in group.items)
            return Listed(items, ordered=False, kind="{}") if len(groups) == len(form.items) else None
        return _assigned(form.items)
    if isinstance(form, Expression):
        vector = _vector(form.text)
        if vector is not None:
            return Listed(vector, ordered=True, kind="")
        spread = _spread((form,))
        return Listed(spread, ordered=False, kind="") if len(spread) > 1 else None
    return None


def _assigned(items: tuple[Form, ...]) -> Listed:
    """x = 2, y = 3 as a pair by names; x_1 = 2, x_2 = 3 (or x = 2, x = 3, or n = 2, 3) as two values."""
    names, values = [], []
    for item in items:
        assigned = isinstance(item, Relation) and item.operators == ("=",) and is_name(item.sides[0])
        names.append(normalize(item.sides[0]) if assigned and isinstance(item, Relation) else "")
        values.append(read_form(item.sides[1]) if assigned and isinstance(item, Relation) else item)
    stems = {stem(name) for name in names if name}
    if all(names) and len(stems) == len(names):
        order = sorted(range(len(names)), key=lambda index: names[index])
        return Listed(tuple(values[i] for i in order), True, "", tuple(names[i] for i in order))
    alone = len(stems) == 1 and (all(names) or (names[0] and not any(names[1:])))
    return Listed(_spread(tuple(values if alone else items)), ordered=False, kind="")


def _spread(items: tuple[Form, ...]) -> tuple[Form, ...]:
    r"""With a \pm b as two items."""
    spread: list[Form] = []
    for item in items:
        if isinstance(item, Expression) and item.text.count("\\pm") == 1 and "\\mp" not in item.text:
            for sign in "+-":
                spread.append(Expression(item.text.replace("\\pm", sign).lstrip("+ "), item.unit, item.is_percent))
        else:
            spread.append(item)
    return tuple(spread)


_MATRIX = re.compile(r"\\begin\{((?:[pbB]|small)?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{\1\}", re.DOTALL)


def _is_matrix(form: Form) -> bool:
    return isinstance(form, Expression) and "\\begin{" in form.text


def _vector(text: str) -> tuple[Form, ...] | None:
    """The items of a matrix with one column or one row, and the rows of any other."""
    found = _MATRIX.fullmatch(text.strip())
    if found is None or "\\begin" in found[2]:
        return None
    rows = [tuple(read_form(cell) for cell in row.split("&")) for row in found[2].split("\\\\") if row.strip()]
    if len(rows) == 1:
        return rows[0] if len(rows[0]) > 1 else None
    if all(len(row) == 1 for row in rows):
        return tuple(row[0] for row in rows)
    return tuple(Group("", row) for row in rows) if len({len(row) for row in rows}) == 1 else None
