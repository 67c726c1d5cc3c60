"""Values between processes: one JSON text that keeps Python's exact types, written in C-level checks of `type`.

null, true, numbers, strings and lists are themselves; everything else is an object of one key:
    {"tuple": [...]}  {"set": [...]}  {"frozenset": [...]}  {"deque": [...]}  {"dict": [[key, value], ...]}
    {"float": "nan"}  {"bytes": "hex"}  {"bytearray": "hex"}  {"complex": [re, im]}  {"range": [start, stop, step]}
    {"ref": n}        an object that cannot be written: it stays where it is, under this number
A subclass of a type is not the type, whatever it says of itself: it becomes a ref. The names that the writer needs are
bound when this file is loaded, before a program can replace them.
"""

import collections
import json
import math
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import Any

MAX_DEPTH = 200
_quote = encode_basestring_ascii
_type, _repr_int, _repr_float = type, int.__repr__, float.__repr__
_isfinite, _list, _len, _map, _Decoder = math.isfinite, list, len, map, json.JSONDecoder
_int, _str, _bool, _float, _complex, _range, _NONE = int, str, bool, float, complex, range, type(None)
_SEQUENCES = {tuple: "tuple", set: "set", frozenset: "frozenset", collections.deque: "deque"}
_DICTS = (dict, collections.Counter, collections.OrderedDict, collections.defaultdict)
_items = dict.items
_hex = {bytes: bytes.hex, bytearray: bytearray.hex}


class Unwritable(ValueError):
    """A value that has no text: too deep, or within itself."""


def write(value: Any, refer: Callable[[Any], int]) -> str:
    """The JSON text; `refer` gives a number to an object that has none of the types above.

    Raises:
        Unwritable: nested deeper than MAX_DEPTH.
        ValueError: an integer with more digits than the interpreter turns into text.
    """
    parts: list[str] = []
    _write(value, refer, parts.append, 0)
    return "".join(parts)


def _write(value: Any, refer: Callable[[Any], int], put: Callable[[str], None], depth: int) -> None:
    kind = _type(value)
    if kind is _int:
        put(_repr_int(value))
    elif kind is _str:
        put(_quote(value))
    elif kind is _bool:
        put("true" if value else "false")
    elif kind is _float:
        put(_repr_float(value) if _isfinite(value) else f'{{"float": "{_repr_float(value)}"}}')
    elif kind is _NONE:
        put("null")
    elif depth >= MAX_DEPTH:
        raise Unwritable
    elif kind is _list:
        _write_all(value, refer, put, depth)
    elif kind in _SEQUENCES:
        put(f'{{"{_SEQUENCES[kind]}": ')
        _write_all(value, refer, put, depth)
        put("}")
    elif kind in _DICTS:
        put('{"dict": ')
        _write_all([_list(pair) for pair in _items(value)], refer, put, depth + 1)
        put("}")
    elif kind in _hex:
        put(f'{{"{kind.__name__}": "{_hex[kind](value)}"}}')
    elif kind is _complex:
        put('{"complex": ')
        _write_all([value.real, value.imag], refer, put, depth)
        put("}")
    elif kind is _range:
        put(f'{{"range": [{value.start}, {value.stop}, {value.step}]}}')
    else:
        put(f'{{"ref": {refer(value)}}}')


def _write_all(values: Any, refer: Callable[[Any], int], put: Callable[[str], None], depth: int) -> None:
    put("[")
    first = True
    for value in values:
        if not first:
            put(", ")
        first = False
        _write(value, refer, put, depth + 1)
    put("]")


_FROM_LIST: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "dict": lambda pairs: dict(_map(_pair, pairs)),
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
}
_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "float": float,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}
_JSON_FROM_LIST: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": list,
    "dict": lambda pairs: _distinct([(_json_key(key), value) for key, value in _map(_pair, pairs)]),
}


def read(text: str, resolve: Callable[[int], Any]) -> Any:
    """The inverse of `write`; `resolve` turns the number of a ref into what stands for it here.

    Raises:
        ValueError: no such text.
    """

    def make(tag: str, content: Any) -> Any:
        if tag == "ref" and _type(content) is _int:
            return resolve(content)
        if tag in _FROM_LIST and _type(content) is _list:
            return _FROM_LIST[tag](content)
        if tag in _FROM_TEXT and _type(content) is _str:
            return _FROM_TEXT[tag](content)
        raise ValueError(f"no value is written like this: {tag[:20]}")

    return _read(text, make)


def read_json(text: str) -> Any:
    """What `write` made, as JSON sees it: tuples are lists, keys are text. Hashes nothing but text.

    Raises:
        ValueError: no such text, or a value that JSON has no form for (a set, NaN, an object).
    """

    def make(tag: str, content: Any) -> Any:
        if tag in _JSON_FROM_LIST and _type(content) is _list:
            return _JSON_FROM_LIST[tag](content)
        raise ValueError(f"JSON has no {'object of this kind' if tag == 'ref' else tag[:20]}")

    return _read(text, make)


def _read(text: str, make: Callable[[str, Any], Any]) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> Any:
        if _len(pairs) != 1:
            raise ValueError("an object has one key")
        return make(*pairs[0])

    try:
        value, end = _Decoder(object_pairs_hook=build, parse_constant=_refuse).scan_once(text, 0)
    except (RecursionError, TypeError, OverflowError, StopIteration) as failure:
        raise ValueError(f"not a value: {failure}") from None
    if end != _len(text):
        raise ValueError("more than one value")
    return value


def _pair(item: Any) -> list[Any]:
    if _type(item) is not _list or _len(item) != 2:
        raise ValueError("a dict is written as pairs")
    return item


def _json_key(key: Any) -> str:
    """A key as JSON writes it."""
    if type(key) is _str:
        return key
    if key is None:
        return "null"
    if type(key) is bool:
        return "true" if key else "false"
    if type(key) in (int, float):
        return repr(key)
    raise ValueError("JSON has no such key")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("two keys are one in JSON")
    return made


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not written like this")
