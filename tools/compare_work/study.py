"""Which runs the study consists of, in which order, and doing them: what is recorded is not run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tools.compare_work.arms import ARMS, BY_NAME, COMMON_RATE, HEADLINE, Arm
from tools.compare_work.one_run import RunFailed, Study
from tools.compare_work.record import MEASURED, TRIAL, Record, Records, RunSpec

TRIAL_SEED = 0
SEEDS = (1, 2, 3, 4, 5)
"""None of them chose a setting."""
MAIN = ("rloo", "local_credit")
BEST, COMMON = "best", "common"
STAGES = (
    (TRIAL, MAIN),
    (BEST, MAIN),
    (COMMON, MAIN),
    (TRIAL, ("default",)),
    (BEST, ("default",)),
    (TRIAL, ("ipvrm", "truth")),
    (BEST, ("ipvrm", "truth")),
    (COMMON, ("default", "ipvrm", "truth")),
    (TRIAL, ("spro", "head", "frozen")),
    (BEST, ("spro", "head", "frozen")),
    (TRIAL, ("grpo", "reinforce", "gae")),
    (BEST, ("grpo", "reinforce", "gae")),
)
"""What is run, the most telling first; the arms of a stage run beside each other."""


def trial_specs(arm: Arm, study: Study) -> list[RunSpec]:
    """The arm's trials, on the seed that counts for nothing else."""
    return [RunSpec(TRIAL, arm.name, TRIAL_SEED, study.trial_steps, trial) for trial in arm.trials]


def chosen(arm: Arm, records: Records, study: Study, rate: float | None = None) -> tuple[str, ...] | None:
    """The settings of the arm's best trial (with that rate), by final sampled accuracy; None: trials are missing."""
    trials = arm.trials if rate is None else arm.at_rate(rate)
    found = records.of(spec for spec in trial_specs(arm, study) if spec.overrides in trials)
    if len(found) < len(trials):
        return None
    return max(found, key=lambda record: record.sampled_curve.final).overrides


def measured_specs(arm: Arm, records: Records, study: Study, mode: str) -> list[RunSpec] | None:
    """The arm's runs that count, at its best rate or at the common one; None: its trials are not finished."""
    settings = chosen(arm, records, study, COMMON_RATE if mode == COMMON else None)
    if settings is None:
        return None
    return [RunSpec(MEASURED, arm.name, seed, study.steps, settings) for seed in SEEDS]


def stage_specs(mode: str, arms: Sequence[Arm], records: Records, study: Study) -> list[RunSpec] | None:
    """A stage's runs, the arms taking turns; None: its arms' trials are not finished."""
    columns = [trial_specs(arm, study) if mode == TRIAL else measured_specs(arm, records, study, mode) for arm in arms]
    if any(column is None for column in columns):
        return None
    return [spec for row in zip(*columns, strict=True) for spec in row]  # type: ignore[arg-type]


def wanted(records: Records, study: Study, available: Sequence[str]) -> Iterator[RunSpec]:
    """The runs that are not recorded, in order; of stages whose trials are not finished none."""
    for mode, names in STAGES:
        arms = [BY_NAME[name] for name in names if name in available]
        for spec in stage_specs(mode, arms, records, study) or [] if arms else []:
            if records.find(spec) is None:
                yield spec


def missing(records: Records, study: Study) -> dict[str, int]:
    """Runs that each arm still lacks: trials, and SEEDS at its best and (first table) at the common rate. Settings that
    are not chosen yet count as their own."""
    left = {}
    for arm in ARMS:
        modes = [BEST] if arm.table != HEADLINE else [BEST, COMMON]
        lacking = [spec for spec in trial_specs(arm, study) if records.find(spec) is None]
        for mode in modes:
            specs = measured_specs(arm, records, study, mode)
            lacking += [None] * len(SEEDS) if specs is None else [s for s in specs if records.find(s) is None]
        left[arm.name] = len(lacking)
    return left


def carry_on(
    records: Records,
    study: Study,
    run: Callable[[RunSpec], Record],
    *,
    available: Sequence[str],
    jobs: int,
    stop_at: float | None,
) -> list[str]:
    """Do what is wanted, ``jobs`` runs at a time, each recorded as it ends; returns what failed.

    run: does one. available: arms whose settings this version knows. stop_at: Unix time after which no run is begun;
    None: until nothing is wanted. A run that failed is not tried again before the next call.
    """
    failures: list[str] = []
    failed: set[RunSpec] = set()
    under_way: dict[Future[Record], RunSpec] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            while len(under_way) < jobs and (stop_at is None or time.time() < stop_at):
                busy = failed | set(under_way.values())
                spec = next((spec for spec in wanted(records, study, available) if spec not in busy), None)
                if spec is None:
                    break
                print(f"{time.strftime('%H:%M:%S')} begins {spec.name}: {' '.join(spec.overrides)}", flush=True)
                under_way[pool.submit(run, spec)] = spec
            if not under_way:
                return failures
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                spec = under_way.pop(future)
                try:
                    record = future.result()
                except RunFailed as error:
                    failures.append(str(error))
                    failed.add(spec)
                    print(error, flush=True)
                else:
                    records.add(record)
                    print(f"{time.strftime('%H:%M:%S')} {_told(record)}", flush=True)


def _told(record: Record) -> str:
    sampled, greedy = record.sampled_curve, record.greedy_curve
    early = f"; {record.ended_early}" if record.ended_early else ""
    return (
        f"{record.spec.name}: sampled {sampled.values[0]:.3f} to {sampled.final:.3f}, greedy {greedy.final:.3f}, "
        f"{record.trained_s[-1]:.0f} s of training{early}"
    )
