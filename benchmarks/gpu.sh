#!/usr/bin/env bash
# Measure a GPU in one command: the tests marked gpu, the loss of every engine, whole training
# steps, and the errors of TF32 and autocast. About 5 minutes on an H100 or H200.
#
#     make .venv/installed && bash benchmarks/gpu.sh      in a checkout
#     .venv/bin/pip install liger-kernel                  before that, to measure Liger-Kernel too
#     bash benchmarks/gpu.sh --results DIR                write rows and a log to DIR
#     bash benchmarks/gpu.sh --parts "gpt2 steps"         run only these parts
#     bash benchmarks/gpu.sh --toy --results DIR          rehearse on the CPU
#     python -m benchmarks.gpu adopt --results DIR        copy the rows of DIR to benchmarks/results
#
# Without .venv, $PYTHON or python3 must have the packages of pyproject.toml and this one installed.
# Rows go to benchmarks/results/gpu.jsonl. Every part is a process with a time limit; $LIMIT seconds
# (default 460) limit all of them together. If a part fails, its name is printed at the end and the
# exit status is 1.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' benchmarks/gpu.sh; exit "$1"; }

# Parts and their limits in seconds, the most valuable first.
PARTS="tests:130 gpt2:110 steps:150 qwen:110 gpt2-long:80 qwen-long:90 precision:50"
LIMIT=${LIMIT:-460}

toy=() results= parts=
while [ $# -gt 0 ]; do
    case $1 in
        --toy) toy=(--toy) ;;
        --results) results=${2:?--results needs a folder}; shift ;;
        --parts) parts=${2:?--parts needs names}; shift ;;
        -h | --help) usage 0 ;;
        *) usage 2 >&2 ;;
    esac
    shift
done
[ ${#toy[@]} -eq 0 ] || [ -n "$results" ] || { echo "--toy needs --results DIR" >&2; exit 2; }

python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
# This checkout first: an installed copy lends nothing but its metadata.
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
export TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
# Without a GPU, Triton's interpreter runs the kernels.
[ ${#toy[@]} -eq 0 ] || export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1

part() {
    local name=$1 limit=$2 left=$((LIMIT - SECONDS)) began=$SECONDS
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -gt 0 ] || { echo "== $name: no time left"; return 1; }
    echo "== $name"
    timeout --kill-after=5 "$limit" "$python" -m benchmarks.gpu "$name" \
        "${toy[@]}" ${results:+--results "$results"}
    local status=$?
    echo "== $name: $((SECONDS - began)) s, exit status $status"
    return $status
}

main() {
    local failed=() one name
    part environment 60 || return
    for one in $PARTS; do
        name=${one%:*}
        [ -z "$parts" ] || [[ " $parts " == *" $name "* ]] || continue
        part "$name" "${one#*:}" || failed+=("$name")
    done
    "$python" -m benchmarks.gpu table ${results:+--results "$results"}
    [ ${#failed[@]} -eq 0 ] && return 0
    echo "failed: ${failed[*]}"
    return 1
}

[ -n "$results" ] || { main; exit $?; }
mkdir -p "$results"
main 2>&1 | tee "$results/gpu.log"
exit "${PIPESTATUS[0]}"
