# Starts the run on every node, hands stop signals on, and asks for another turn when the run says so (exit code 85).
# shellcheck disable=SC2154  # the variables in capitals are set above

# Not -e: exit codes decide what happens next.
set -uo pipefail

# sbatch starts this script in the folder where it was submitted; relative paths begin there.
OUTPUT_DIR=$(realpath -m "$OUTPUT_DIR")
attempt=${SLURM_RESTART_COUNT:-0}
logs="$OUTPUT_DIR/logs/job-$SLURM_JOB_ID-attempt-$attempt"

say() { echo "$(date -u +%FT%TZ) job $SLURM_JOB_ID, attempt $attempt: $*"; }

fail() {
    say "error: $*" >&2
    exit 2
}

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
ulimit -l unlimited 2>/dev/null || say "warning: locked memory stays limited; InfiniBand may refuse to start"
# The core dumps of a node's processes would fill the disk that checkpoints need.
ulimit -c 0
# Threads of ranks that share a node's cores only fight.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Megatron overlaps communication with matrix products: kernels must start in the order in which they were queued.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
# A lost peer ends the process with an error; otherwise the collective waits for ever.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
# Tensors are freed when their collective is done, not when the stream is next used: lower peak memory.
export TORCH_NCCL_AVOID_RECORD_STREAMS=1
# Sequences of ever different lengths fragment the caching allocator; segments that grow do not.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
# About four seconds of a link that flaps are waited out (4.096 us x 2^20) instead of ending the run.
export NCCL_IB_TIMEOUT="${NCCL_IB_TIMEOUT:-20}"
# What NCCL complains about, one file a process: lines of 64 nodes in one log cannot be read.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}" NCCL_DEBUG_FILE="$logs/nccl-%h-%p.log"

# shellcheck disable=SC2317  # called on the nodes
# On every node: end what an earlier attempt of this run left, then check GPUs, shared folder and port.
node_check() {
    local process found=0 gpus
    for process in /proc/[0-9]*; do
        [ -O "$process" ] || continue
        tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "PRIME_MEGATRON_RUN=$PRIME_MEGATRON_RUN" || continue
        tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "PRIME_MEGATRON_ATTEMPT=$PRIME_MEGATRON_ATTEMPT" && continue
        echo "$(hostname): ending process ${process#/proc/}, left by an earlier attempt"
        kill -KILL "${process#/proc/}" 2>/dev/null && found=1
    done
    [ "$found" -eq 0 ] || sleep 5
    if [ "$1" -gt 0 ]; then
        gpus=$(nvidia-smi --query-gpu=uuid --format=csv,noheader | wc -l)
        [ "$gpus" -ge "$1" ] || { echo "$(hostname): $gpus of $1 GPUs answer"; return 1; }
    fi
    [ -e "$2/shared" ] || { echo "$(hostname): $2 is not the folder that the first node sees"; return 1; }
    touch "$2/seen-by-$(hostname)-${SLURM_PROCID:-0}" || { echo "$(hostname): cannot write to $2"; return 1; }
    if (exec 3<>"/dev/tcp/127.0.0.1/$3") 2>/dev/null && [ "${SLURM_PROCID:-0}" -eq 0 ]; then
        echo "$(hostname): port $3 was taken"
        return 1
    fi
}

one_a_node=(--nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1)
in_container=()
if [ -n "$CONTAINER_IMAGE" ]; then
    in_container=(--container-image="$CONTAINER_IMAGE" --container-mounts="$CONTAINER_MOUNTS")
fi

touch "$logs/shared"
srun "${one_a_node[@]}" --output="$logs/check-%n.log" \
    bash -c "$(declare -f node_check); node_check \"\$@\"" node_check "$GPUS_PER_NODE" "$logs" "$port" ||
    fail "a node is not fit: see $logs/check-*.log"

say "on ${hosts[*]}; nodes meet at ${hosts[0]}:$port; logs in $logs"

# A node's end gives the others two minutes to end by themselves: their exit codes count, not srun's kill.
srun "${one_a_node[@]}" "${in_container[@]}" --kill-on-bad-exit=0 --wait=120 --output="$logs/node-%n.log" \
    "${COMMAND[@]}" --resume auto \
    --rdzv-endpoint "${hosts[0]}:$port" --rdzv-id "$SLURM_JOB_ID-$attempt" &
step=$!

# SLURM warns this shell only (--signal=B:...); srun hands the signal on to every node, the launcher to its ranks.
trap 'say "$STOP_SIGNAL received, saving"; kill -s "$STOP_SIGNAL" "$step" 2>/dev/null' "$STOP_SIGNAL"
trap 'say "TERM received, saving"; kill -s TERM "$step" 2>/dev/null' TERM

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
0) say "done" ;;
85)
    if [ "$REQUEUE" -eq 1 ]; then
        say "stopped with its state saved; back into the queue"
        scontrol requeue "$SLURM_JOB_ID" || fail "the cluster does not requeue: submit with examples/slurm/chain.sh"
    else
        say "stopped with its state saved; the next job of the chain continues"
    fi
    ;;
*) say "error: the run ended with exit code $code: see $logs" >&2 ;;
esac
exit "$code"
