"""The tables of docs/measurements.md, from the records."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from tools.compare_work.arms import ARMS, BY_NAME, COMMON_RATE, ESTIMATORS, HEADLINE, OTHERS, RATE, Arm
from tools.compare_work.contest import Contest, contests, mean
from tools.compare_work.one_run import Study
from tools.compare_work.record import Records
from tools.compare_work.study import BEST, COMMON, SEEDS, chosen, measured_specs, missing, trial_specs

BEGIN, END = "<!-- compare: begin -->", "<!-- compare: end -->"
BARS = {BEST: 0.65, COMMON: 0.45}
"""Largest mean ratio of steps that the headline may have."""
Found = dict[str, list[Contest]]


def report(records: Records, study: Study) -> str:
    """Everything between the markers."""
    best, common = found(records, study, BEST), found(records, study, COMMON)
    parts = [
        _preface(records, study),
        "### Each arm at its best rate",
        _table(best, records, study, BEST, HEADLINE),
        _verdict(best, BEST),
        f"### All arms at {COMMON_RATE:g}",
        _table(common, records, study, COMMON, HEADLINE),
        _verdict(common, COMMON),
        "![sampled accuracy over steps](compare.png)",
        "### Seed by seed",
        _seeds(best, BEST),
        _seeds(common, COMMON),
    ]
    for table, title in (
        (OTHERS, "Without a PRM that learns from its own run"),
        (ESTIMATORS, "Local credit by estimator"),
    ):
        if any(best[arm.name] for arm in ARMS if arm.table == table):
            parts += [f"### {title}", _table(best, records, study, BEST, table)]
    parts += ["### Where the credit lies", _localisation(best), "### Trials", _trials(records, study)]
    parts.append(_left(records, study))
    return "\n\n".join(part for part in parts if part)


def found(records: Records, study: Study, mode: str) -> Found:
    """Every arm's contests with RLOO in this mode, as far as they are recorded."""
    rloo = records.of(measured_specs(BY_NAME["rloo"], records, study, mode) or [])
    return {
        arm.name: contests(records.of(measured_specs(arm, records, study, mode) or []), rloo)
        for arm in ARMS
    }  # fmt: skip


def _preface(records: Records, study: Study) -> str:
    commits = ", ".join(dict.fromkeys(record.commit for record in records.all))
    loads = [record.load for record in records.all]
    starts = {record.start for record in records.all}
    lines = [
        f"Command: `make compare`; commits {commits}; {platform.machine()} CPU, {platform.system()}, Python "
        f"{platform.python_version()}; load {min(loads):.1f} to {max(loads):.1f}. {len(records.all)} runs, a line each "
        f"in docs/headline/runs.jsonl; {study.steps} steps, trials {study.trial_steps}; seeds "
        f"{', '.join(map(str, SEEDS))}, trials on seed 0.",
        "",
        "final: mean of the last three evaluations. Steps to RLOO's final: the curve smoothed over three evaluations, "
        "interpolated, first time at that seed's RLOO final. ratio: over RLOO's own. Seconds are those of training, "
        "and compared only where both runs ran beside each other.",
    ]
    if len(starts) > 1:
        lines.append(f"\nThe runs start from {len(starts)} different sets of models and data ({', '.join(starts)}).")
    return "\n".join(lines)


def _table(by_arm: Found, records: Records, study: Study, mode: str, table: str) -> str:
    """A row for each arm that has been run."""
    lines = [
        "| arm | seeds | final sampled | final greedy | area | steps to RLOO's final | ratio | reached "
        "| seconds, ratio | processor s a step |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        row = by_arm[arm.name]
        if row and (arm.table == table or arm.name == "rloo" or (table == ESTIMATORS and arm.name == "local_credit")):
            lines.append(_row(arm, row))
            settings = chosen(arm, records, study, COMMON_RATE if mode == COMMON else None)
            assert settings is not None
            lines[-1] = lines[-1].replace(arm.title, f"{arm.title}: {told(settings)}", 1)
    return "\n".join(lines) if len(lines) > 2 else "Not run yet."


def _row(arm: Arm, row: Sequence[Contest]) -> str:
    records = [each.record for each in row]
    sampled = [record.sampled_curve.final for record in records]
    greedy = statistics.fmean(record.greedy_curve.final for record in records)
    area = statistics.fmean(record.sampled_curve.area for record in records)
    reached = sum(each.steps is not None for each in row)
    cpu = statistics.fmean(record.cpu_s / record.steps for record in records)
    spread = f" ± {statistics.stdev(sampled):.3f}" if len(sampled) > 1 else ""
    return (
        f"| {arm.title} | {len(row)} | {statistics.fmean(sampled):.3f}{spread} | {greedy:.3f} | {area:.3f} "
        f"| {number(mean([each.steps for each in row]), 0)} | {number(mean([each.ratio for each in row]), 2)} "
        f"| {reached} of {len(row)} | {number(_known([each.seconds_ratio for each in row]), 2)} | {cpu:.2f} |"
    )


def _verdict(by_arm: Found, mode: str) -> str:
    """The bars of the headline, for the process-reward arm of the first table with the smallest mean ratio."""
    ratios = {
        arm.name: mean([each.ratio for each in by_arm[arm.name]])
        for arm in ARMS
        if arm.table == HEADLINE and arm.name not in ("rloo", "truth") and len(by_arm[arm.name]) == len(SEEDS)
    }
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not known:
        return "No process-reward arm has reached RLOO's final on every seed of a finished set yet: the bar is open."
    name = min(known, key=known.__getitem__)
    row, bar = by_arm[name], BARS[mode]
    seconds = _known([each.seconds_ratio for each in row])
    greedy, other = (
        statistics.fmean(record.greedy_curve.final for record in records)
        for records in ([each.record for each in row], [each.rloo for each in row])
    )
    text = f"Best process-reward arm: {BY_NAME[name].title}, {known[name]:.2f} of RLOO's steps (bar: {bar}): "
    text += "held." if known[name] <= bar else f"missed by {known[name] - bar:.2f}."
    if mode == BEST:
        said = "not known" if seconds is None else f"{seconds:.2f}, {'held' if seconds <= 1.0 else 'missed'}"
        text += f" Seconds to the same, ratio (bar: 1): {said}."
    text += f" Greedy at the end {greedy:.3f} against {other:.3f}: {'not worse' if greedy >= other else 'worse'}."
    return text


def _seeds(by_arm: Found, mode: str) -> str:
    title = "best rate" if mode == BEST else "common rate"
    lines = [
        f"| {title}: arm | seed | final sampled | final greedy | steps to RLOO's final | ratio | seconds to it "
        "| beside RLOO |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        for each in by_arm[arm.name]:
            lines.append(
                f"| {arm.title} | {each.seed} | {each.record.sampled_curve.final:.3f} "
                f"| {each.record.greedy_curve.final:.3f} | {number(each.steps, 0)} | {number(each.ratio, 2)} "
                f"| {number(each.seconds, 0)} | {'yes' if each.beside else 'no'} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def _localisation(by_arm: Found) -> str:
    lines = [
        "Over the digits of the sampled steps, means over the seeds. The truth of a digit: right, less the siblings' "
        "share of right at that line.",
        "",
        "| arm | reward: AUC | reward: cosine | advantage: cosine | advantage: cosine, starred lines |",
        "|---|---|---|---|---|",
    ]
    names = ("reward_auc", "reward_cosine", "advantage_cosine", "starred_cosine")
    for arm in ARMS:
        row = by_arm[arm.name]
        if row:
            values = [_known([getattr(each.record.localisation, name) for each in row]) for name in names]
            lines.append(f"| {arm.title} | {' | '.join(number(value, 2) for value in values)} |")
    return "\n".join(lines) if len(lines) > 4 else ""


def _trials(records: Records, study: Study) -> str:
    lines = ["| arm | settings | final sampled | final greedy | area | |", "|---|---|---|---|---|---|"]
    for arm in ARMS:
        best = chosen(arm, records, study)
        for record in records.of(trial_specs(arm, study)):
            sampled, greedy = record.sampled_curve, record.greedy_curve
            mark = "best" if record.overrides == best else ""
            lines.append(
                f"| {arm.title} | {told(record.overrides)} | {sampled.final:.3f} | {greedy.final:.3f} "
                f"| {sampled.area:.3f} | {mark}{' ended early' if record.ended_early else ''} |"
            )
    return "\n".join(lines)


def _left(records: Records, study: Study) -> str:
    left = {name: count for name, count in missing(records, study).items() if count}
    if not left:
        return ""
    each = ", ".join(f"{name} {count}" for name, count in left.items())
    return f"Not run yet (runs, trials included): {each}. `make compare` goes on with them."


def told(settings: Sequence[str]) -> str:
    """Settings in short: keys without their section, the preset and what every trial of the arm has left out."""
    shown = []
    for key, _, value in (setting.partition("=") for setting in settings):
        if key == RATE:
            shown.insert(0, f"lr {float(value):g}")
        elif key == "models.prm.path":
            shown.append("half-size PRM" if "small" in value else "PRM trained before")
        elif key.startswith("models.") and key != "models.reference":
            role, name = key.split(".")[1], key.split(".")[-1]
            shown.append(f"{role} {name} {value}")
        elif key not in ("preset", "models.reference"):
            shown.append(f"{key.split('.')[-1]} {value}")
    return ", ".join(shown)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _known(values: Sequence[float | None]) -> float | None:
    """Mean of those that there are."""
    return mean([value for value in values if value is not None])


def insert(document: Path, text: str) -> None:
    """Replace what stands between the markers.

    Raises:
        ValueError: the document has no markers.
    """
    old = document.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise ValueError(f"{document}: the lines {BEGIN} and {END} are missing; put them where the tables belong")
    head, rest = old.split(BEGIN, 1)
    document.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
