"""Process rewards against outcome-only RLOO on the starred quiz: a study that is done run by run.

    python -m tools.compare                      # what is not recorded yet, then tables and plot
    python -m tools.compare --for-s 3600         # begins no run after an hour; start it again to go on
    python -m tools.compare --report             # tables and plot of what is recorded

Every finished run is a line of docs/headline/runs.jsonl and is not run again. The tables go into docs/measurements.md,
the plot into docs/compare.png, a report of each arm's last run into runs/compare/report.html. compare_work/arms.py has
the arms and their settings, compare_work/study.py the order.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path

from prime_megatron.errors import InputError
from tools.compare_work.arms import ARMS
from tools.compare_work.one_run import ROOT, Study, config_hash, run
from tools.compare_work.page import write_page
from tools.compare_work.plot import plot
from tools.compare_work.prepare import prepare, prepare_frozen
from tools.compare_work.record import Record, Records, RunSpec
from tools.compare_work.report import insert, report
from tools.compare_work.study import carry_on, missing, trial_specs


def available(study: Study) -> list[str]:
    """Arms whose settings this version knows; the others are told."""
    found = []
    for arm in ARMS:
        try:
            for spec in trial_specs(arm, study):
                config_hash(study, spec)
        except InputError as error:
            print(f"{arm.name} is left out: {str(error).splitlines()[0]}", flush=True)
            continue
        found.append(arm.name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--records", type=Path, default=ROOT / "docs/headline/runs.jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/compare", help="folders of the runs under way")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--for-s", type=float, help="begin no run after so many seconds")
    parser.add_argument("--steps", type=int, default=240, help="of a run that counts")
    parser.add_argument("--trial-steps", type=int, default=120, help="of a trial")
    parser.add_argument("--every", type=int, default=20, help="steps between evaluations")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="longest that one run may take")
    parser.add_argument("--report", action="store_true", help="run nothing")
    options = parser.parse_args()
    os.chdir(ROOT)  # the configs' paths are relative to it
    shared = (f"eval.every={options.every}",)
    study = Study(options.output, options.steps, options.trial_steps, shared, options.limit_s)
    records, failures = Records(options.records), []
    if not options.report:
        start, making = prepare(), threading.Lock()

        def begin(spec: RunSpec) -> Record:
            if spec.arm == "frozen":
                with making:
                    prepare_frozen()
            return run(study, spec, start)

        failures = carry_on(
            records,
            study,
            begin,
            available=available(study),
            jobs=options.jobs,
            stop_at=None if options.for_s is None else time.time() + options.for_s,
        )
    if records.all:
        insert(ROOT / "docs/measurements.md", report(records, study))
        plot(records, study, ROOT / "docs/compare.png")
    write_page(options.output)
    left = {name: count for name, count in missing(records, study).items() if count}
    print(f"recorded: {len(records.all)} runs; missing: {left or 'none'}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
