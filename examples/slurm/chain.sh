#!/usr/bin/env bash
# Submits a job script several times, each job waiting for the one before: for clusters that forbid requeueing.
# A job starts when all jobs before it ended without being done (exit code 85, or a failure); it resumes by itself. Once
# a job is done (or ended itself for good, exit code 86, which the job script turns into 0), the dependencies of the rest
# can no longer be met, and SLURM drops them. `scancel` of one job starts the next one: to end a chain, cancel it by name,
# scancel --name NAME.
#
#   prime-megatron slurm run.yaml --no-requeue --output run.sbatch
#   examples/slurm/chain.sh 5 run.sbatch [sbatch options]
set -euo pipefail

if [ $# -lt 2 ] || ! [ "$1" -gt 0 ] 2>/dev/null || [ ! -f "$2" ]; then
    echo "usage: $0 NUMBER_OF_JOBS JOB_SCRIPT [sbatch options]" >&2
    exit 2
fi
jobs=$1
script=$2
shift 2

earlier=""
for ((job = 1; job <= jobs; job++)); do
    wait_for=()
    if [ -n "$earlier" ]; then
        # Of all earlier jobs: one that SLURM dropped counts as "not ok", too.
        wait_for=(--dependency="afternotok$earlier" --kill-on-invalid-dep=yes)
    fi
    id=$(sbatch --parsable "${wait_for[@]}" "$@" "$script")
    id=${id%%;*}
    earlier+=":$id"
    echo "job $job of $jobs: $id"
done
