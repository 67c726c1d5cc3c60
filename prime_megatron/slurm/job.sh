# Starts the run on every node, hands stop signals on, and does what `prime_megatron.slurm.attempt` says at the end.
# shellcheck disable=SC2154  # the variables in capitals are set above

# Not -e: exit codes decide what happens next.
set -uo pipefail

# Handlers come first: the default action of a signal is to end the script. SLURM warns this script only
# (--signal=B:...); srun hands USR1 and USR2 on to the tasks, and at TERM it kills them: TERM goes on as the stop signal.
step="" again="" warned=""
attempt=${SLURM_RESTART_COUNT:-0}
say() { echo "$(date -u +%FT%TZ) job $SLURM_JOB_ID, attempt $attempt: $*"; }
# shellcheck disable=SC2317  # called by the traps
stop() { # SIGNAL
    [ -n "$warned" ] || say "$1 received, saving"
    warned=${warned:-$1}
    hand_on
}
# shellcheck disable=SC2317
hand_on() {
    # More than once: srun loses a signal that comes while it starts. A run counts from the first one.
    if [ -n "$step" ] && [ -z "$again" ]; then
        (while kill -s "$STOP_SIGNAL" "$step" 2>/dev/null; do sleep 3; done) &
        again=$!
    fi
}
trap 'stop "$STOP_SIGNAL"' "$STOP_SIGNAL"
trap 'stop TERM' TERM

fail() {
    say "error: $*" >&2
    exit 2
}

# The job's environment goes to every task, whatever sbatch was told of its own.
export SLURM_EXPORT_ENV=ALL
set +u # modules, conda and the like read variables that are not set
setup
set -u

# sbatch starts this script in the folder where it was submitted; relative paths begin there.
OUTPUT_DIR=$(realpath -m "$OUTPUT_DIR")
logs="$OUTPUT_DIR/logs/job-$SLURM_JOB_ID-attempt-$attempt"
mkdir -p "$logs" || fail "cannot write to $OUTPUT_DIR: it must be on a file system that all nodes share"

# The nodes of this job, the first one is where the others meet.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#hosts[@]}" -eq "$NODES" ] || fail "the job has ${#hosts[@]} nodes and the config asks for $NODES"

# This script runs on the first node: the first port that nobody listens on, beginning at one of this job's own.
port=$((20000 + SLURM_JOB_ID % 20000))
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done

# Marks the processes of this attempt, so that the next one can tell what an earlier one left behind.
export PRIME_MEGATRON_RUN="$OUTPUT_DIR" PRIME_MEGATRON_ATTEMPT="$SLURM_JOB_ID-$attempt"

# Every rank holds a socket to each peer and a file per shard: the soft limit of 1024 is soon reached.
ulimit -Sn "$(ulimit -Hn)"
# InfiniBand pins the memory that it reads and writes.
ulimit -l unlimited 2>/dev/null || [ "$GPUS_PER_NODE" -eq 0 ] ||
    say "warning: locked memory stays limited; InfiniBand may refuse to start"
# The core dumps of a node's processes would fill the disk that checkpoints need.
ulimit -c 0
# Threads of ranks that share a node's cores only fight.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# What torch's C++ parts warn of when a peer ends first is no news: the launcher names the cause of a failure.
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
# Megatron overlaps communication with matrix products: kernels must start in the order in which they were queued.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
# A lost peer ends the process with an error; otherwise the collective waits for ever.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# Tensors are freed when their collective is done, not when the stream is next used: lower peak memory.
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
# About four seconds of a link that flaps are waited out (4.096 us x 2^20) instead of ending the run.
export NCCL_IB_TIMEOUT="${NCCL_IB_TIMEOUT:-20}"
# What NCCL complains about, one file a process: lines of 64 nodes in one log cannot be read.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}" NCCL_DEBUG_FILE="$logs/nccl-%h-%p.log"

in_container=()
if [ -n "$CONTAINER_IMAGE" ]; then
    in_container=(--container-image="$CONTAINER_IMAGE" --container-mounts="$CONTAINER_MOUNTS" --container-workdir="$PWD")
fi

# Python knows the folder's owner, the checkpoints and the requeue policy.
ask() { # begin|end OPTIONS...
    local in_step=()
    if [ -n "$CONTAINER_IMAGE" ]; then
        in_step=(srun --overlap --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" "${in_container[@]}")
    fi
    "${in_step[@]}" "$PYTHON" -m prime_megatron.slurm.attempt "$1" "$OUTPUT_DIR" --logs "$logs" "${@:2}"
}
finish() { # CODE: asks what comes next, says it, does it, and exits
    local next code text
    [ -z "$again" ] || kill "$again" 2>/dev/null
    for _ in 1 2; do # a TERM from SLURM may end the first question
        read -r next code text < <(
            ask end --code "$1" --warned "$warned" --requeue "$REQUEUE" \
                --job "$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null)" \
                --nodes "$(sinfo --noheader --Node --nodes "$SLURM_JOB_NODELIST" --Format StateLong 2>/dev/null)"
        ) && break
    done
    if [ -z "${next:-}" ]; then
        say "error: $PYTHON cannot say what comes next; not requeued" >&2
        exit "$1"
    fi
    say "$text"
    if [ "$next" = requeue ]; then
        trap '' "$STOP_SIGNAL" TERM # a requeue ends this script by TERM
        scontrol requeue "$SLURM_JOB_ID" ||
            say "error: SLURM does not requeue this job: render with --no-requeue, submit with examples/slurm/chain.sh" >&2
    fi
    exit "$code"
}

first=$(ask begin --steps "$STEPS" --export "$EXPORT") || fail "the run cannot begin: see above"
if [ "$first" = "done" ]; then
    say "all $STEPS steps are done; nothing to run"
    exit 0
fi

# shellcheck disable=SC2317  # called on the nodes
# On every node: end what an earlier attempt of this run left, then check GPUs, shared folder and port.
node_check() {
    local process mark job found=0 gpus
    for process in /proc/[0-9]*; do
        [ -O "$process" ] || continue
        mark=$(tr '\0' '\n' 2>/dev/null <"$process/environ") || continue
        grep -qxF "PRIME_MEGATRON_RUN=$PRIME_MEGATRON_RUN" <<<"$mark" || continue
        mark=$(sed -n 's/^PRIME_MEGATRON_ATTEMPT=//p' <<<"$mark")
        [ "$mark" != "$PRIME_MEGATRON_ATTEMPT" ] || continue
        # Another job's are left alone while that job runs: it owns the folder, and the run will say so.
        job=${mark%-*}
        if [ "$job" != "${PRIME_MEGATRON_ATTEMPT%-*}" ] &&
            squeue --noheader --jobs "$job" --states RUNNING,SUSPENDED,COMPLETING --format %i 2>/dev/null | grep -q .; then
            continue
        fi
        echo "$(hostname): ending process ${process#/proc/}, left by an earlier attempt"
        kill -KILL "${process#/proc/}" 2>/dev/null && found=1
    done
    [ "$found" -eq 0 ] || sleep 5
    if [ "$1" -gt 0 ]; then
        gpus=$(nvidia-smi --query-gpu=uuid --format=csv,noheader | wc -l)
        [ "$gpus" -ge "$1" ] || { echo "$(hostname): $gpus of $1 GPUs answer"; return 1; }
    fi
    [ -e "$2/shared" ] || { echo "$(hostname): $2 is not the folder that the first node sees"; return 1; }
    touch "$2/seen-by-${SLURM_NODEID:-0}" || { echo "$(hostname): cannot write to $2"; return 1; }
    if (exec 3<>"/dev/tcp/127.0.0.1/$3") 2>/dev/null && [ "${SLURM_PROCID:-0}" -eq 0 ]; then
        echo "$(hostname): port $3 was taken"
        return 1
    fi
}

one_a_node=(--nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 --cpu-bind=none)
touch "$logs/shared"
# No --output: a node that does not see the folder could not open a file there, and srun would call that a success.
srun "${one_a_node[@]}" --label \
    bash -c "$(declare -f node_check); node_check \"\$@\"" node_check "$GPUS_PER_NODE" "$logs" "$port" ||
    { [ -n "$warned" ] || fail "a node is not fit: see above"; }

if [ -n "$warned" ]; then
    say "asked to stop before the start"
    finish 85
fi
seen=("$logs"/seen-by-*)
[ "${#seen[@]}" -eq "$NODES" ] ||
    fail "${#seen[@]} of $NODES nodes see $logs: run.output_dir must be on a file system that all nodes share"

say "on ${hosts[*]}; nodes meet at ${hosts[0]}:$port; progress: $logs/node-0.log"

# What srun says of a healthy stop, and of a cluster without core binding.
harmless='Exited with exit code 8[56]$|: User defined signal [12]$|lacks support for cpu binding$'
# A node's end gives the others two minutes to end by themselves: their exit codes count, not srun's kill.
srun "${one_a_node[@]}" "${in_container[@]}" --kill-on-bad-exit=0 --wait=120 --output="$logs/node-%n.log" \
    "${COMMAND[@]}" --resume auto \
    --rdzv-endpoint "${hosts[0]}:$port" --rdzv-id "$SLURM_JOB_ID-$attempt" \
    2> >(grep --line-buffered -vE "$harmless" >&2) &
step=$!
[ -z "$warned" ] || hand_on

# A trapped signal ends `wait` early.
while :; do
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break
done
# Once more: a signal may have ended the last wait just as the run ended. The shell remembers.
wait "$step"
code=$?

case "$code" in
0 | 85) ;;
*) # The first errors of any node.
    if [ -z "$warned" ]; then
        grep -m 3 -E '^(error:|Traceback|slurmstepd.*error)|^[A-Za-z_.]*Error:' "$logs"/node-*.log |
            sed "s#^$logs/##" | head -n 12 >&2
    fi
    ;;
esac
finish "$code"
