"""The strict YAML loader: YAML 1.2 scalars, no duplicate keys, lines, clear refusals."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_megatron.config.strict_yaml import dump, parse_file, parse_text, parse_value
from prime_megatron.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1e6", 1e6),
        (".5e3", 500.0),
        ("5.", 5.0),
        ("-1.5E+2", -150.0),
        ("3", 3),
        ("-7", -7),
        ("010", 10),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1:30", "1:30"),
        ("2026-11-20", "2026-11-20"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        (".inf", ".inf"),
        ("e5", "e5"),
        (".", "."),
        ("1e", "1e"),
        ("'1e-6'", "1e-6"),
        ("[1e-6, no]", [1e-6, "no"]),
        ("{a: {b: 2}}", {"a": {"b": 2}}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    read = parse_value(text, "here")
    assert read == value
    assert type(read) is type(value)


def test_lines_of_keys_and_items():
    document = parse_text("a: 1\nb:\n  c: 2\n  d:\n    - x\n    - y\n", "f")
    assert document.value == {"a": 1, "b": {"c": 2, "d": ["x", "y"]}}
    assert document.lines == {("a",): 1, ("b",): 2, ("b", "c"): 3, ("b", "d"): 4, ("b", "d", 0): 5, ("b", "d", 1): 6}


def test_duplicate_key_names_both_lines():
    with pytest.raises(InputError) as error:
        parse_text("a:\n  lr: 1\n  b: 2\n  lr: 3\n", "run.yaml")
    assert str(error.value) == "run.yaml:4: duplicate key a.lr (first on line 2); keep one of them"


def test_anchors_and_merges():
    document = parse_text("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nagain: *b\n", "f")
    assert document.value == {"base": {"x": 1, "y": 2}, "use": {"x": 1, "y": 3}, "again": {"x": 1, "y": 2}}
    assert document.lines[("use", "y")] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "f:1: the top level must be a mapping of `key: value` lines"),
        ("just text\n", "f:1: the top level must be a mapping of `key: value` lines"),
        ("", "f: is empty; write the config as `key: value` lines"),
        ("# only a comment\n", "f: is empty; write the config as `key: value` lines"),
        ("1: a\n", "f:1: key 1 must be a name (text)"),
        ("a: &x [*x]\n", "f:1: an anchor contains itself"),
        ("a: !!python/object/apply:os.system [ls]\n", None),
        ("a: !!python/name:os.system x\n", None),
        ("a: [1, 2\nb: 3\n", None),
        ("a: 1\n b: 2\n", None),
        ("a: 1e999\n", "f:1: '1e999' is beyond the largest number"),
        ("a: 1\n---\nb: 2\n", None),
    ],
)
def test_refusals_are_one_line_with_a_place(text, message):
    with pytest.raises(InputError) as error:
        parse_text(text, "f")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("f")
    if message:
        assert str(error.value) == message


def test_tagged_list_is_refused():
    with pytest.raises(InputError, match="tag"):
        parse_text("a: !!python/tuple [1, 2]\n", "f")


def test_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        parse_file(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="is a folder"):
        parse_file(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        parse_file(tmp_path / "latin.yaml")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)
    | st.sampled_from(["no", "on", "1e6", "1e-6", ".5", "~", "null", "true", "010", "<<", "1:30", "", "\n\n", " x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz_01", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.text("abcnoy1e_", min_size=1), JSON, min_size=1, max_size=4))
def test_dump_reads_back(value):
    def same(a, b):
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
        return (
            type(a) is type(b) and a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))
        )

    text = dump(value)
    assert same(value, parse_text(text, "f").value), text
