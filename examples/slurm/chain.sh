#!/usr/bin/env bash
# Submits a job script several times, each job waiting for the one before: for clusters that forbid requeueing.
# A job starts when the one before ended without being done (exit code 85, or a failure); it resumes by itself. Once a
# job is done, the dependency of the next can no longer be met, and SLURM drops the rest of the chain.
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

previous=""
for ((job = 1; job <= jobs; job++)); do
    wait_for=()
    if [ -n "$previous" ]; then
        wait_for=(--dependency="afternotok:$previous" --kill-on-invalid-dep=yes)
    fi
    previous=$(sbatch --parsable "${wait_for[@]}" "$@" "$script")
    previous=${previous%%;*}
    echo "job $job of $jobs: $previous"
done
