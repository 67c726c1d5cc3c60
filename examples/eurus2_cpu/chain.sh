#!/usr/bin/env bash
# The whole chain on a CPU, from raw files to a table: `make eurus-cpu`. The same command goes on where it was stopped, by
# kill -9 too. PYTHON, RUN (its folder, runs/eurus2_cpu), PORT (of the answerer, 18377) and REAL (a folder with
# math_train_7474.json and math500.json) may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
PORT=${PORT:-18377}
REAL=${REAL:-../shared/data/math}
HERE=examples/eurus2_cpu
RUN=runs/eurus2_cpu
RAW=$RUN/raw DATA=$RUN/data
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH=.
answerer=
trap '[ -z "$answerer" ] || kill "$answerer" 2>/dev/null || true' EXIT

verb() { "$PYTHON" -m prime_megatron "$@"; }

curate() { # stage, name of the output, inputs and options; what is there stays
    local stage=$1 output=$DATA/$2.jsonl
    shift 2
    [ -e "$output" ] || verb curate "$stage" --config $HERE/curate.yaml --output "$output" "$@"
}

ask() { # the same for a stage that asks the answerer
    [ -e "$DATA/$2.jsonl" ] || start_answerer
    curate "$@" --model rule --endpoint "http://127.0.0.1:$PORT/v1" --concurrency 4
}

start_answerer() {
    [ -z "$answerer" ] || return 0
    "$PYTHON" $HERE/answerer.py --port "$PORT" &
    answerer=$!
    until "$PYTHON" -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$PORT/', timeout=5)" 2>/dev/null; do
        kill -0 "$answerer" 2>/dev/null || { echo "error: no answerer on port $PORT; set PORT" >&2; exit 2; }
        sleep 0.2
    done
}

learn() { # verb, config, folder, settings
    local name=$1 config=$2 folder=$3
    shift 3
    verb "$name" $HERE/"$config" --resume auto run.output_dir="$folder" "$@"
}

measure() { # model, name
    [ -e "$RUN/eval/$2/results.json" ] || verb evaluate "$1" $HERE/suite.yaml --data $RAW --output "$RUN/eval/$2"
}

mkdir -p $RAW $DATA $RUN/eval
if [ ! -e $RAW/planted.json ]; then
    real=()
    [ -d "$REAL" ] && real=(--real "$REAL")
    "$PYTHON" $HERE/make_sources.py --output $RAW "${real[@]}"
fi

# Rows for RL: with a ground truth that holds.
curate read rl_read $RAW/rl.jsonl --form numina --name rl
curate read unsolvable_read $RAW/unsolvable.jsonl --form plain --name unsolvable
curate filter rl_filtered $DATA/rl_read.jsonl $DATA/unsolvable_read.jsonl
curate dedup rl_unique $DATA/rl_filtered.jsonl
curate decontaminate rl_clean $DATA/rl_unique.jsonl --suite $HERE/suite.yaml --data $RAW
ask choices rl_open $DATA/rl_clean.jsonl

# Rows for the supervised stage: of a source without ground truths, and none that RL keeps.
curate read open_read $RAW/open.jsonl --form numina --name open read.without_truth=keep
curate filter open_filtered $DATA/open_read.jsonl
curate dedup open_unique $DATA/open_filtered.jsonl
curate decontaminate open_clean $DATA/open_unique.jsonl --suite $HERE/suite.yaml --data $RAW --against $DATA/rl_open.jsonl
ask sft sft $DATA/open_clean.jsonl

# Real rows through the same filters.
if [ -e $RAW/real.jsonl ]; then
    curate read real_read $RAW/real.jsonl --form math --name real
    curate filter real_filtered $DATA/real_read.jsonl
    curate dedup real_unique $DATA/real_filtered.jsonl
    curate decontaminate real_clean $DATA/real_unique.jsonl --suite math --data "$REAL" --sets math500
else
    echo "no real rows: there is no $REAL/math_train_7474.json on this machine"
fi

learn sft sft.yaml $RUN/sft
curate attempts rl $DATA/rl_open.jsonl --model $RUN/sft/model
learn train prime.yaml $RUN/rloo advantage.process_weight=0 run.name=eurus2-cpu-rloo
learn train prime.yaml $RUN/prime

measure $RAW/model start
measure $RUN/sft/model sft
measure $RUN/rloo/policy rloo
measure $RUN/prime/policy prime
"$PYTHON" $HERE/report.py $RUN
