"""What the job script asks Python: `begin` before an attempt's processes, `end` after them.

    python -m prime_megatron.slurm.attempt begin OUTPUT_DIR --logs FOLDER --steps 500
    python -m prime_megatron.slurm.attempt end OUTPUT_DIR --logs FOLDER --code 85 --warned USR1 --requeue 1

`begin` refuses a folder that another run owns, notes the newest checkpoint, and prints "go", or "done" where nothing is
left to do. `end` prints one line for the script: "requeue" or "stop", the script's exit code, and a text for the log.
Neither needs torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prime_megatron.checkpoint.layout import CHECKPOINTS, MARKER_FILE, step_of
from prime_megatron.errors import ExitCode, InputError
from prime_megatron.run.lock import check_owner
from prime_megatron.slurm.duration import seconds_of
from prime_megatron.slurm.requeue import Ended, Verdict, decide

ATTEMPTS_FILE = "attempts.jsonl"
"""Below <output_dir>/logs: a line for every attempt that ended."""
BEGAN_FILE = "newest-checkpoint"
"""Below the attempt's own log folder: the step of the newest checkpoint when it began."""


@dataclass(frozen=True)
class Attempt:
    """A line of attempts.jsonl."""

    job: str
    attempt: int
    """SLURM_RESTART_COUNT."""
    code: int
    began_after: int
    """Step of the newest checkpoint at its start; -1: there was none."""
    ended_after: int
    """And at its end."""
    warned: str

    @property
    def progressed(self) -> bool:
        return self.ended_after > self.began_after


@dataclass(frozen=True)
class Said:
    """What SLURM says as the attempt ends; empty where it does not answer."""

    job: str
    """`scontrol --oneliner show job`."""
    nodes: str
    """`sinfo --Format StateLong` of the job's nodes: a star marks one that does not answer."""


def main(argv: Sequence[str]) -> int:
    """Run `begin` or `end`; returns the exit code, and prints errors as one line."""
    parser = argparse.ArgumentParser(prog="python -m prime_megatron.slurm.attempt", allow_abbrev=False)
    parser.add_argument("moment", choices=("begin", "end"))
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--logs", type=Path, required=True, help="the attempt's own log folder")
    parser.add_argument("--steps", type=int, default=0, help="run.steps")
    parser.add_argument("--export", type=int, choices=(0, 1), default=1, help="checkpoint.export_final")
    parser.add_argument("--code", type=int, default=0, help="of the run")
    parser.add_argument("--warned", default="", help="the signal that the script was sent")
    parser.add_argument("--job", default="", help="what `scontrol --oneliner show job` says of the job")
    parser.add_argument("--nodes", default="", help="what `sinfo` says of the job's nodes: a state each")
    parser.add_argument("--requeue", type=int, choices=(0, 1), default=1)
    args = parser.parse_args(argv)
    try:
        if args.moment == "begin":
            print(begin(args.output_dir, args.logs, steps=args.steps, export=bool(args.export)))
        else:
            said = Said(args.job, args.nodes)
            verdict = end(args.output_dir, args.logs, args.code, args.warned, said, may_requeue=bool(args.requeue))
            print("requeue" if verdict.requeue else "stop", verdict.code, verdict.text)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    return ExitCode.DONE


def begin(output: Path, logs: Path, *, steps: int, export: bool) -> str:
    """Note where the attempt begins; returns "done" where the run has nothing left to do, else "go".

    Raises:
        InputError: another run owns the output folder.
    """
    # Imported here, with the config's classes: `end` must answer in the seconds that SLURM leaves a cancelled job.
    from prime_megatron.run.output_dir import is_done

    check_owner(output)
    if is_done(output, steps=steps, export=export):
        return "done"
    (logs / BEGAN_FILE).write_text(f"{newest_step(output)}\n", encoding="ascii")
    return "go"


def end(output: Path, logs: Path, code: int, warned: str, said: Said, *, may_requeue: bool) -> Verdict:
    """Note how the attempt ended and decide what comes next; code, warned and may_requeue as in `Ended`."""
    began = logs / BEGAN_FILE
    now = newest_step(output)
    before = int(began.read_text(encoding="ascii")) if began.exists() else now
    job = os.environ["SLURM_JOB_ID"]
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    this = Attempt(job, restarts, code, before, now, warned)
    path = output / "logs" / ATTEMPTS_FILE
    earlier = [attempt for attempt in _read(path, job) if attempt.attempt != restarts]  # asked twice, noted twice
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(this)) + "\n")
    attempts = [*earlier, this]
    slurm_ends_it, ran_out = slurm_ends(said.job, warned)
    return decide(
        Ended(
            code=code,
            warned=warned,
            slurm_ends_it=slurm_ends_it,
            ran_out=ran_out,
            lost_node=any(state.endswith("*") or state.startswith("down") for state in said.nodes.split()),
            progressed=this.progressed,
            fruitless=_in_a_row([not attempt.progressed for attempt in attempts]),
            failures=_in_a_row([attempt.code != ExitCode.REQUEUE and not attempt.warned for attempt in attempts]),
            may_requeue=may_requeue,
        )
    )


def newest_step(output: Path) -> int:
    """The step of the newest complete checkpoint; -1: none."""
    root = output / CHECKPOINTS
    if not root.is_dir():
        return -1
    steps = [step_of(path) for path in root.iterdir() if (path / MARKER_FILE).exists()]
    return max((step for step in steps if step is not None), default=-1)


def slurm_ends(said: str, warned: str) -> tuple[bool, bool]:
    """(SLURM is ending the job, the job has run as long as its limit).

    Args:
        said: `scontrol --oneliner show job`; empty where SLURM does not answer. Then a job that got TERM counts as one
            that SLURM ends: a cancel must stay a cancel.
        warned: the signal that the script was sent.
    """
    fields = dict(re.findall(r"(?:^|\s)(JobState|RunTime|TimeLimit)=(\S+)", said))
    if len(fields) < 3:
        return warned == "TERM", False
    limit, ran = seconds_of(fields["TimeLimit"]), seconds_of(fields["RunTime"])
    return fields["JobState"] not in ("RUNNING", "SUSPENDED"), limit is not None and ran is not None and ran >= limit


def _read(path: Path, job: str) -> list[Attempt]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    attempts = [Attempt(**json.loads(line)) for line in lines]
    return [attempt for attempt in attempts if attempt.job == job]


def _in_a_row(held: Sequence[bool]) -> int:
    """How many at the end are true."""
    count = 0
    for value in reversed(held):
        if not value:
            break
        count += 1
    return count


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
