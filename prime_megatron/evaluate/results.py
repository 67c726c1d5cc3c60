"""The folder of a finished evaluation, and two of them held against each other.

<output>/
    results.json          figures by set, macro average: the same bytes for the same contract
    contract.json         what was asked, how, of whom, and who graded it
    questions.json        by set and question: the share of its responses that are right
    samples/<set>.jsonl   every response with its verdict
    timing.json           seconds
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.evaluate.figures import Mark, SetFigures, question_accuracy
from prime_megatron.evaluate.statistics import Interval, differs, macro_interval, paired_difference
from prime_megatron.generate.blocks import whole_file

RESULTS, CONTRACT, QUESTIONS, SAMPLES, TIMING = (
    "results.json", "contract.json", "questions.json", "samples", "timing.json",
)  # fmt: skip
ByQuestion = dict[str, dict[str, float]]
"""Set -> question's id -> share of right responses."""


def write_results(
    output: Path, figures: Mapping[str, SetFigures], by_question: ByQuestion, contract: Mapping[str, Any]
) -> None:
    """Write everything but samples and timing; results.json last, which says that all is there."""
    write_json(output / QUESTIONS, by_question)
    write_json(output / CONTRACT, contract)
    macro = macro_interval([list(shares.values()) for shares in by_question.values()])
    write_json(
        output / RESULTS,
        {"sets": {name: asdict(own) for name, own in figures.items()}, "macro_accuracy": asdict(macro)},
    )


def write_json(path: Path, value: Any) -> None:
    """A whole file of JSON, or none."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=True).encode() + b"\n")


def shares_of(ids: Sequence[str], marks: Sequence[Sequence[Mark]]) -> dict[str, float]:
    """The share of right responses by question."""
    return {name: question_accuracy(own) for name, own in zip(ids, marks, strict=True)}


@dataclass(frozen=True)
class Difference:
    """The second evaluation less the first on one set, or over all."""

    name: str
    first: float
    second: float
    interval: Interval

    @property
    def different(self) -> bool:
        """Whether the two models may be called different here."""
        return differs(self.interval)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the sets that both have."""

    differences: list[Difference]
    notes: list[str]
    """Where the two were not asked alike."""


def compare(first: Path, second: Path) -> Comparison:
    """Hold two finished evaluations against each other, question by question.

    Raises:
        InputError: a folder that is no finished evaluation, no common set, or a set whose questions differ.
    """
    ours, theirs = (_read(folder, QUESTIONS) for folder in (first, second))
    common = [name for name in ours if name in theirs]
    if not common:
        raise InputError(f"{first} and {second}: no set in common ({', '.join(ours)}; {', '.join(theirs)})")
    for name in common:
        lacking = sorted(ours[name].keys() ^ theirs[name].keys())
        if lacking:
            raise InputError(
                f"{first} and {second}: set {name} was asked with other questions, {len(lacking)} are in one alone "
                f"(such as {lacking[0]!r}); evaluate both with the same suite and limit"
            )
    pairs = {name: ([*ours[name].values()], [theirs[name][question] for question in ours[name]]) for name in common}
    differences = [_difference(name, [own], [other]) for name, (own, other) in pairs.items()]
    if len(common) > 1:
        differences.append(
            _difference("macro average", [own for own, _ in pairs.values()], [other for _, other in pairs.values()])
        )
    return Comparison(differences, _notes(first, second, common))


def _difference(name: str, first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Difference:
    return Difference(name, _macro(first), _macro(second), paired_difference(first, second))


def _macro(by_set: Sequence[Sequence[float]]) -> float:
    return sum(sum(values) / len(values) for values in by_set) / len(by_set)


def _notes(first: Path, second: Path, common: Sequence[str]) -> list[str]:
    one, two = (_read(folder, CONTRACT) for folder in (first, second))
    notes = [
        f"set {name}: {key} is not the same in both; their contract.json says how"
        for name in common
        for key in ("questions_sha256", "prompts_sha256", "wording", "decoding", "context", "grader")
        if one["sets"][name].get(key) != two["sets"][name].get(key)
    ]
    if one["grader"] != two["grader"]:
        notes.append("the graders are not the same version")
    return notes


def _read(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / RESULTS).is_file():
        raise InputError(f"{folder}: no finished evaluation in it ({RESULTS}); name an --output of `evaluate`")
    try:
        value = json.loads((folder / name).read_bytes())
    except (OSError, ValueError):
        raise InputError(f"{folder / name}: cannot be read; evaluate again") from None
    if not isinstance(value, dict):
        raise InputError(f"{folder / name}: not what `prime-megatron evaluate` writes")
    return value
