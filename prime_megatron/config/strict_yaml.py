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
from prime_megatron.strict_json import read_bytes

KeyPath = tuple[str | int, ...]

MAX_BYTES = 256 * 2**10
"""Of a config file; what is longer is not parsed, which takes about a second for so much."""
MAX_DEPTH = 32
"""Lists and sections within each other."""
MAX_VALUES = 20_000
"""Of a config, every use of an anchor counted anew: aliases of aliases grow without bound."""

_NULL = re.compile(r"(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_NONE = re.compile(r"(?:none|None|NONE)$")
_NEEDS_YAML = tuple("[{\"'&*!%@`")
"""Begin what is no plain text."""
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


class Unquoted(str):
    """The word none, written without quotes: whether it means null, a choice or text is the key's matter."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that resolves plain scalars as YAML 1.2 does, of bounded depth and number."""

    depth = num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node with what is in it; the parser goes on as it is asked, so nothing deeper is read."""
        self.depth += 1
        self.num_nodes += 1
        if self.depth > MAX_DEPTH or self.num_nodes > MAX_VALUES:
            deep = f"lists and sections are nested more than {MAX_DEPTH} deep"
            problem = deep if self.depth > MAX_DEPTH else f"more than {MAX_VALUES} values"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `_Loader` would read as something else than a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_install_resolvers(_Loader)
_install_resolvers(_Dumper)
# So that the word is written in quotes, and read back as text.
_Dumper.add_implicit_resolver("tag:prime_megatron,none", _NONE, list("nN"))


@dataclass(frozen=True)
class Document:
    """A parsed file."""

    value: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    """Line of each key and list item, from 1."""


def parse_file(path: str | Path) -> Document:
    """The mapping in a YAML file.

    Raises:
        InputError: no such file, too long, not UTF-8, not YAML, too deep, a duplicate key, a tag, or a top level that
            is no mapping.
    """
    path = Path(path)
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8")
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a YAML file") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file; name an existing YAML file") from None
    except PermissionError:
        raise InputError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; is it a config?") from None
    return parse_text(text, str(path))


def parse_text(text: str, name: str) -> Document:
    """The mapping in a YAML text; `name` stands in for the file in messages. Raises InputError as `parse_file`."""
    node = _compose(text, name)
    if node is None:
        raise InputError(f"{name}: is empty; write the config as `key: value` lines")
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{name}:{_line(node)}: the top level must be a mapping of `key: value` lines")
    reading = _Reading(name)
    return Document(reading.construct(node, (), reading.lines, frozenset()), reading.lines)


def parse_value(text: str, name: str, *, section: bool = False) -> Any:
    """One value of the command line, whole: nothing in it begins a comment.

    Args:
        text: YAML where it begins with a bracket or a quote, or is to be a ``section``; else a plain value, which
            keeps its spaces, colons and number signs where it is text.
        name: names the override.

    Raises:
        InputError: not YAML, or something follows the value.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{name.encode('utf-8', 'replace').decode()}: not UTF-8 text") from None
    block = text.startswith(("|", ">")) and "\n" in text
    if not section and not block and not text.lstrip().startswith(_NEEDS_YAML):
        return _plain(text, name)
    try:
        node = _compose(text, name)
        if node is None:
            return None
        rest = text[node.end_mark.index :].strip()
        if rest:
            raise InputError(f"{name}: {_short(rest)} follows the value and would be cut off; quote the whole value")
        return _Reading(name).construct(node, (), {}, frozenset())
    except InputError as error:
        # A value has one line, not worth naming.
        raise InputError(str(error).replace(f"{name}:1: ", f"{name}: ", 1)) from None


def _plain(text: str, name: str) -> Any:
    """A value without quotes: null, true, a number, or text as it stands."""
    if text and not text.strip():
        return text
    tag = _Loader("").resolve(yaml.ScalarNode, text.strip(), (True, False))
    mark = yaml.Mark(name, 0, 0, 0, None, None)
    try:
        value = _scalar(yaml.ScalarNode(tag, text.strip(), mark, mark), name)
    except InputError as error:
        raise InputError(str(error).replace(f"{name}:1: ", f"{name}: ", 1)) from None
    return text if type(value) is str else value


def dump(value: Any) -> str:
    """YAML text that `parse_text` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise InputError(f"{where}: not valid YAML: {_short(error.problem or error.context or '')}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {_short(str(error).splitlines()[0])}") from None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


@dataclass
class _Reading:
    """One document on its way from nodes to values; counts them."""

    name: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    num_values: int = 0

    def construct(self, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], open_nodes: frozenset[int]) -> Any:
        """The node's value; ``lines`` takes where its keys are; ``open_nodes`` are those around it."""
        name = self.name
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            raise InputError(f"{name}:{_line(node)}: more than {MAX_VALUES} values, aliases counted; is it a config?")
        if id(node) in open_nodes:
            raise InputError(f"{name}:{_line(node)}: an anchor contains itself")
        if len(open_nodes) >= MAX_DEPTH:
            raise InputError(f"{name}:{_line(node)}: lists and sections are nested more than {MAX_DEPTH} deep")
        open_nodes = open_nodes | {id(node)}
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTION_TAGS:
            raise InputError(f"{name}:{_line(node)}: tag {_short(node.tag)} is not allowed")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, name)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                lines[(*path, index)] = _line(item)
                items.append(self.construct(item, (*path, index), lines, open_nodes))
            return items
        assert isinstance(node, yaml.MappingNode)
        return self._mapping(node, path, lines, open_nodes)

    def _mapping(
        self, node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], open_nodes: frozenset[int]
    ) -> dict[str, Any]:
        name = self.name
        result: dict[str, Any] = {}
        own: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE_TAG:
                for merged in self._merged(value_node, path, lines, open_nodes):
                    for key, value in merged.items():
                        if key not in own and key not in result:
                            result[key] = value
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _STR_TAG:
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
                raise InputError(f"{name}:{_line(key_node)}: key {_short(shown)} must be a name (text)")
            key = str(_scalar(key_node, name))
            if key in own:
                dotted = ".".join(map(str, (*path, key)))
                raise InputError(
                    f"{name}:{_line(key_node)}: duplicate key {_short(dotted)} (first on line {own[key]}); keep one of "
                    "them"
                )
            own[key] = _line(key_node)
            lines[(*path, key)] = own[key]
            result[key] = self.construct(value_node, (*path, key), lines, open_nodes)
        return result

    def _merged(
        self, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], open_nodes: frozenset[int]
    ) -> Iterator[dict[str, Any]]:
        """The mappings behind a `<<:`; their lines count where the node's own keys set none."""
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                raise InputError(f"{self.name}:{_line(node)}: << needs an anchor to a mapping")
            merged_lines: dict[KeyPath, int] = {}
            value = self.construct(source, path, merged_lines, open_nodes)
            for key, line in merged_lines.items():
                lines.setdefault(key, line)
            yield value


def _scalar(node: yaml.ScalarNode, name: str) -> Any:
    kind = node.tag.rpartition(":")[2]
    try:
        match kind:
            case "str" | "merge":
                node.value.encode("utf-8")
                return Unquoted(node.value) if node.style is None and _NONE.match(node.value) else node.value
            case "null":
                return None
            case "bool" if _BOOL.match(node.value):
                return node.value.lower() == "true"
            case "int" if len(node.value) <= 20 and -(2**63) <= int(node.value) < 2**63:
                return int(node.value)
            case "float":
                value = float(node.value)
                if math.isfinite(value):
                    return value
    except ValueError:
        pass
    reasons = {"int": "beyond 64 bits", "float": "beyond the largest number", "str": "no text that UTF-8 can write"}
    reason = reasons[kind] if kind in reasons else f"not allowed here (tag {_short(node.tag)})"
    raise InputError(f"{name}:{_line(node)}: {_short(repr(node.value))} is {reason}")
