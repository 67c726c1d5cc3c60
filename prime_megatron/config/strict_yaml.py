"""YAML without surprises: the scalars of YAML 1.2, no duplicate keys, line numbers for every key.

PyYAML's own loader reads 1e-6 as a string, keeps the last of duplicate keys and turns `no` into False.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prime_megatron.errors import InputError

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_STR_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"


def _install_resolvers(cls: type) -> None:
    cls.yaml_implicit_resolvers = {}  # type: ignore[attr-defined]
    for tag, pattern, first in (
        ("null", _NULL, ["~", "n", "N", ""]),
        ("bool", _BOOL, list("tTfF")),
        ("int", _INT, list("-+0123456789")),
        ("float", _FLOAT, list("-+0123456789.")),
        ("merge", re.compile(r"<<$"), ["<"]),
    ):
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, first)  # type: ignore[attr-defined]


class _Loader(yaml.SafeLoader):
    """SafeLoader that resolves plain scalars as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would read as something else than a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_install_resolvers(_Loader)
_install_resolvers(_Dumper)


@dataclass(frozen=True)
class Document:
    """A parsed file."""

    value: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line of each key and list item, from 1."""


def parse_file(path: str | Path) -> Document:
    """The mapping in a YAML file.

    Raises:
        InputError: no such file, not UTF-8, not YAML, a duplicate key, a tag, or a top level that is no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a YAML file") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name an existing YAML file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return parse_text(text, str(path))


def parse_text(text: str, name: str) -> Document:
    """The mapping in a YAML text; `name` stands in for the file in messages. Raises InputError as `parse_file`."""
    node = _compose(text, name)
    if node is None:
        raise InputError(f"{name}: is empty; write the config as `key: value` lines")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{name}:{_line(node)}: the top level must be a mapping of `key: value` lines")
    lines: dict[KeyPath, int] = {}
    value = _construct(node, name, (), lines, frozenset())
    return Document(value, lines)


def parse_value(text: str, name: str) -> Any:
    """One value, as it would be read after `key:` in a file. Raises InputError when it is not YAML."""
    try:
        node = _compose(text, name)
        return None if node is None else _construct(node, name, (), {}, frozenset())
    except InputError as error:
        # A value has one line, not worth naming.
        raise InputError(str(error).replace(f"{name}:1: ", f"{name}: ", 1)) from None


def dump(value: Any) -> str:
    """YAML text that `parse_text` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise InputError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _construct(node: yaml.Node, name: str, path: KeyPath, lines: dict[KeyPath, int], open_nodes: frozenset[int]) -> Any:
    if id(node) in open_nodes:
        raise InputError(f"{name}:{_line(node)}: an anchor contains itself")
    open_nodes = open_nodes | {id(node)}
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTION_TAGS:
        raise InputError(f"{name}:{_line(node)}: tag {node.tag} is not allowed")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, name)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            lines[(*path, index)] = _line(item)
            items.append(_construct(item, name, (*path, index), lines, open_nodes))
        return items
    assert isinstance(node, yaml.MappingNode)
    return _mapping(node, name, path, lines, open_nodes)


def _mapping(
    node: yaml.MappingNode, name: str, path: KeyPath, lines: dict[KeyPath, int], open_nodes: frozenset[int]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    own: dict[str, int] = {}
    for key_node, value_node in node.value:
        if key_node.tag == _MERGE_TAG:
            for merged in _merged(value_node, name, path, lines, open_nodes):
                for key, value in merged.items():
                    if key not in own and key not in result:
                        result[key] = value
            continue
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR_TAG:
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            raise InputError(f"{name}:{_line(key_node)}: key {shown} must be a name (text)")
        key = key_node.value
        if key in own:
            dotted = ".".join(map(str, (*path, key)))
            raise InputError(
                f"{name}:{_line(key_node)}: duplicate key {dotted} (first on line {own[key]}); keep one of them"
            )
        own[key] = _line(key_node)
        lines[(*path, key)] = own[key]
        result[key] = _construct(value_node, name, (*path, key), lines, open_nodes)
    return result


def _merged(
    node: yaml.Node, name: str, path: KeyPath, lines: dict[KeyPath, int], open_nodes: frozenset[int]
) -> Iterator[dict[str, Any]]:
    """The mappings behind a `<<:`; their lines count where the node's own keys set none."""
    for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if not isinstance(source, yaml.MappingNode):
            raise InputError(f"{name}:{_line(node)}: << needs an anchor to a mapping")
        merged_lines: dict[KeyPath, int] = {}
        value = _construct(source, name, path, merged_lines, open_nodes)
        for key, line in merged_lines.items():
            lines.setdefault(key, line)
        yield value


def _scalar(node: yaml.ScalarNode, name: str) -> Any:
    kind = node.tag.rpartition(":")[2]
    try:
        match kind:
            case "str" | "merge":
                return node.value
            case "null":
                return None
            case "bool" if _BOOL.match(node.value):
                return node.value.lower() == "true"
            case "int":
                return int(node.value)
            case "float":
                value = float(node.value)
                if math.isfinite(value):
                    return value
    except ValueError:
        pass
    raise InputError(f"{name}:{_line(node)}: {node.value!r} is not allowed here (tag {node.tag} or out of range)")
