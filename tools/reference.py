"""Writes the pages of docs/reference/ from the code: `python tools/reference.py`.

With --check nothing is written: exit code 1 where a page is not what the code says.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from prime_megatron.algo.metric_table import DERIVED, EXTREMES, RATIOS, SPREADS  # noqa: E402
from prime_megatron.config import PrmConfig, ScoreConfig, SftConfig, TrainConfig  # noqa: E402
from prime_megatron.config.base import OnResume, Section  # noqa: E402
from prime_megatron.config.curate import CurateConfig  # noqa: E402
from prime_megatron.config.keys import keys_of  # noqa: E402
from prime_megatron.metrics.table import METRICS, Metric  # noqa: E402
from tools.reference_api import api_page  # noqa: E402
from tools.reference_verbs import verbs_page  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
MADE = "This page is made from the code by `python tools/reference.py`.\n"
CONFIGS: dict[str, type[Section]] = {
    "Training": TrainConfig,
    "Supervised fine-tuning": SftConfig,
    "The PRM alone": PrmConfig,
    "Scoring": ScoreConfig,
    "Curation": CurateConfig,
}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >=", "max_length": "length <="}


def main() -> int:
    parser = argparse.ArgumentParser(prog="reference.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
    return 1 if check and stale else 0


def pages() -> dict[Path, str]:
    """Path and text of every page."""
    return {
        FOLDER / "config.md": config_page(),
        FOLDER / "metrics.md": metrics_page(),
        FOLDER / "verbs.md": verbs_page(MADE),
        FOLDER / "api.md": api_page(MADE),
    }


def all_metrics() -> list[Metric]:
    """Every metric that a run can log: those made of statistics and the others."""
    rows = [Metric(row.name, row.unit, row.meaning) for row in (*RATIOS, *SPREADS, *DERIVED)]
    for extreme in EXTREMES:
        rows += [
            Metric(f"{extreme.name}{end}", extreme.unit, f"{word} {extreme.meaning}.")
            for end, word in (("max", "Largest"), ("min", "Smallest"))
        ]
    return [*rows, *METRICS]


def metrics_page() -> str:
    """A table for every group of metrics, in the order of the names."""
    groups: dict[str, list[Metric]] = {}
    for metric in sorted(all_metrics(), key=lambda metric: metric.name):
        groups.setdefault(metric.name.split("/")[0], []).append(metric)
    lines = [
        "# Metrics\n", MADE,
        "A run writes one line a step to `metrics.jsonl`, and to TensorBoard and Weights & Biases where they are on; a "
        "metric is there when what it is made of is. `<role>` is policy, prm, critic or sft; other words in `<>` are "
        "explained in their row. A share is between 0 and 1; unit 1 has no dimension. Means over tokens, sequences or "
        "prompts are over those of all ranks.\n",
    ]  # fmt: skip
    for group, metrics in groups.items():
        lines += [f"## {group}\n", "| metric | unit | meaning |", "|---|---|---|"]
        lines += [f"| `{metric.name}` | {metric.unit} | {_cell(metric.meaning)} |" for metric in metrics]
        lines.append("")
    return "\n".join(lines)


def config_page() -> str:
    """Every key of every kind of config: type, bounds, default, whether a resume may change it."""
    lines = [
        "# Config keys\n", MADE,
        "`prime-megatron train` takes a config of the first kind, `sft` of the second, `prm` of the third; every key "
        "can be given on the command line as well, as `section.key=value`. The fourth kind, of `score` and "
        "`process-bench`, is given there alone; the last one, of `curate`, there or with `--config`. "
        "Resume: whether a run that is resumed may have another value than its checkpoint.\n",
    ]  # fmt: skip
    for title, root in CONFIGS.items():
        lines += [f"## {title}\n", *_tables(root)]
    return "\n".join(lines)


def _tables(root: type[Section]) -> Iterator[str]:
    """A table for every section that has keys of its own."""
    keys = {key.name: key for key in keys_of(root)}
    for prefix, section, meaning in _sections(root, "", root.__doc__ or ""):
        fields = {name: field for name, field in section.model_fields.items() if f"{prefix}{name}" in keys}
        if not fields:
            continue
        yield from (f"### {prefix.rstrip('.') or 'top level'}\n", f"{_cell(meaning)}\n")
        yield from ("| key | type | default | resume | meaning |", "|---|---|---|---|---|")
        for name, field in fields.items():
            key = keys[f"{prefix}{name}"]
            default = "required" if field.is_required() else f"`{_plain(key.default)}`"
            free = "free" if key.on_resume is OnResume.free else ""
            kind = _cell(_type(field.annotation, field.metadata))
            yield f"| `{key.name}` | {kind} | {default} | {free} | {_cell(field.description or '')} |"
        yield ""


def _sections(section: type[Section], prefix: str, meaning: str) -> Iterator[tuple[str, type[Section], str]]:
    """(dotted prefix, class, meaning) of a section and of those in it."""
    yield prefix, section, meaning
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            inner = typing.cast(type[Section], field.annotation)
            yield from _sections(inner, f"{prefix}{name}.", field.description or inner.__doc__ or "")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _type(annotation: Any, metadata: Any = ()) -> str:
    """A type as a reader of YAML knows it, with its bounds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], arguments[1:])
    if annotation is type(None):
        text = "none"
    elif origin is Literal:
        text = ", ".join(f"`{value}`" for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        text = " or ".join(_type(argument) for argument in arguments)
    elif origin is tuple:
        text = f"list of {_type(arguments[0])}"
    elif origin is dict:
        text = f"{_type(arguments[0])}: {_type(arguments[1])}, ..."
    elif isinstance(annotation, type) and issubclass(annotation, StrEnum):
        text = ", ".join(f"`{member.value}`" for member in annotation)
    else:
        text = {"str": "text", "int": "integer", "float": "number", "bool": "true, false", "list": "list"}[
            annotation.__name__
        ]
    bounds = [f"{sign} {getattr(mark, name)}" for mark in metadata for name, sign in BOUNDS.items()
              if getattr(mark, name, None) is not None]  # fmt: skip
    return f"{text} {', '.join(bounds)}" if bounds else text


def _plain(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value)[1:-1]
    return str(value)


def _cell(text: str) -> str:
    """Text in one cell of a table: no line break, no bar."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
