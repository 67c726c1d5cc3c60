"""A finished run as one line of the records file, which is what a study is continued from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.compare_work.curves import Curve

TRIAL, MEASURED = "trial", "measured"


@dataclass(frozen=True)
class RunSpec:
    """One run of the study. Two are the same run where arm, seed, steps and settings agree."""

    kind: str
    """TRIAL: it may choose its arm's settings; MEASURED: it counts."""
    arm: str
    seed: int
    steps: int
    overrides: tuple[str, ...]
    """Settings over examples/starred/prime.yaml, those that every run of the study shares left out."""

    @property
    def name(self) -> str:
        """For its folder and the console."""
        return f"{self.arm}-{self.kind}-{self.seed}"


@dataclass(frozen=True)
class Localisation:
    """Where credit lies, over the answers' digits of the sampled steps; a perfect score is 1."""

    reward_auc: float | None
    """Of the process reward, for "this digit is right": 0.5 is chance. None: there are no process rewards."""
    reward_cosine: float | None
    """Of the process reward with the truth: right, less the siblings' share of right at that line."""
    advantage_cosine: float | None
    """Of the advantage with that truth."""
    starred_cosine: float | None
    """Of the advantage with the truth of the starred lines, 0 at the others."""


@dataclass(frozen=True)
class Record:
    """A finished run."""

    kind: str
    arm: str
    seed: int
    steps: int
    overrides: tuple[str, ...]
    config: str
    """Hash of the resolved config, output folder aside."""
    start: str
    """Hash of the data and of the models that the run starts from."""
    commit: str
    began: float
    """Unix time."""
    ended: float
    cpu_s: float
    """Processor seconds of the whole run, start and evaluations included."""
    load: float
    """Mean number of running processes in the run's last five minutes."""
    evaluated: tuple[int, ...]
    """Steps of the evaluations."""
    sampled: tuple[float, ...]
    greedy: tuple[float, ...]
    trained_s: tuple[float, ...]
    """Seconds of training up to each evaluation, evaluations left out."""
    stage_s: dict[str, float]
    """Seconds of each stage over all steps."""
    localisation: Localisation
    ended_early: str
    """Why the run ended before its last step; "": it did not. Its curve is then held at its last values."""

    @property
    def spec(self) -> RunSpec:
        return RunSpec(self.kind, self.arm, self.seed, self.steps, self.overrides)

    @property
    def sampled_curve(self) -> Curve:
        return Curve(self.evaluated, self.sampled)

    @property
    def greedy_curve(self) -> Curve:
        return Curve(self.evaluated, self.greedy)

    @property
    def seconds_curve(self) -> Curve:
        return Curve(self.evaluated, self.trained_s)


class Records:
    """The records of a file, in its order.

    Raises:
        ValueError: a line is not a record, named by file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: list[Record] = []
        if path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    self.all.append(_read(json.loads(line)))
                except (TypeError, KeyError, ValueError) as error:
                    raise ValueError(f"{path}:{number}: not a record of a run ({error}); remove the line") from None

    def add(self, record: Record) -> None:
        """Append it to the file, as one write."""
        self.all.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_rounded(dataclasses.asdict(record)), sort_keys=True) + "\n")

    def find(self, spec: RunSpec) -> Record | None:
        """The record of a run, whichever kind it was made as."""
        key = _identity(spec)
        return next((record for record in self.all if _identity(record.spec) == key), None)

    def of(self, specs: Iterable[RunSpec]) -> list[Record]:
        """The records that there are of these runs."""
        return [record for spec in specs if (record := self.find(spec)) is not None]


def _identity(spec: RunSpec) -> tuple[object, ...]:
    return spec.arm, spec.seed, spec.steps, spec.overrides


def _read(row: dict[str, Any]) -> Record:
    lists = ("overrides", "evaluated", "sampled", "greedy", "trained_s")
    row |= {key: tuple(row[key]) for key in lists} | {"localisation": Localisation(**row["localisation"])}
    return Record(**row)


def _rounded(value: Any) -> Any:
    """Floats to five digits after the point: the file stays small, and says no less."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
