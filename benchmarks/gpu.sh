#!/bin/sh
# What SDXL takes on the GPU that is here, in under nine minutes, as one table for docs/chips.md.
#
#     sh benchmarks/gpu.sh FOLDER
#     MODEL=random:mid sh benchmarks/gpu.sh FOLDER        # a rehearsal on any machine, small
#
# Parts run in the order of their worth, each with a limit of its own and with what is left of all the seconds (LIMIT);
# none needs another, so what is missing here or fails costs that part alone. FOLDER/gpu.md and gpu.json are whole after
# each part, and say what was not done. Needs jax, and for the peers PyTorch and diffusers; nothing is downloaded.
# PYTHON is the interpreter, PARTS the parts to run.
set -u

[ $# -eq 1 ] || { echo "gpu.sh: give a folder for the results: sh benchmarks/gpu.sh FOLDER" >&2; exit 2; }
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
mkdir -p "$1/parts" && folder=$(cd "$1" && pwd) || exit 1
parts=$folder/parts
rm -f "$parts"/*

model=${MODEL:-random:sdxl}
python=${PYTHON:-python3}
plan=${PARTS:-kernels switches precisions peers startup batch-4 batch-8 precisions-4 precisions-8}
case $model in
    random:sdxl) size=1024x1024 steps=20 runs=3 jobs=5 repeats=50 times=1 ;;
    *) size=64x64 steps=2 runs=1 jobs=2 repeats=2 times=4 ;; # a rehearsal may take longer
esac
deadline=$(($(date +%s) + ${LIMIT:-530} * times))
export PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
echo "$plan" > "$parts/plan"
cd "$root" || exit 1

# part NAME SECONDS COMMAND...: what it prints goes to NAME.out and NAME.err, how it ended to NAME.end
part() {
    name=$1 limit=$(($2 * times)) began=$(date +%s)
    shift 2
    left=$((deadline - began))
    [ "$left" -ge "$limit" ] || limit=$left
    [ "$limit" -ge 5 ] || return 1
    echo "gpu.sh: $name, at most $limit s" >&2
    : > "$parts/$name.out"
    "$python" benchmarks/gpu_table.py "$folder"
    timeout -k 5 "$limit" "$@" > "$parts/$name.out" 2> "$parts/$name.err" < /dev/null
    status=$?
    echo "$status $(($(date +%s) - began)) $limit" > "$parts/$name.end"
    "$python" benchmarks/gpu_table.py "$folder"
    return "$status"
}

step() {
    name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" benchmarks/gpu_step.py --model "$model" --size "${size%x*}" --steps "$steps" \
        --runs "$runs" --jobs "$jobs" "$@"
}

bench() {
    name=$1 limit=$2
    shift 2
    part "$name" "$limit" "$python" -m jaxl bench --model "$model" --size "$size" --steps "$steps" --runs "$runs" \
        --quiet --json "$@"
}

# the weights of what opens a checkpoint are written beside the parts that need none
part weights 240 "$python" -c "
from jaxl.bench.random_model import ensure_random_model
ensure_random_model('${model#random:}')" &
weights=$!

for each in $plan; do
    case $each in
        peers | startup | batch-*) wait "$weights" ;;
    esac
    case $each in
        kernels) part kernels 60 "$python" benchmarks/gpu_kernels.py --repeats "$repeats" --runs "$runs" ;;
        switches) step switches 150 --compare switches ;;
        # with what is there: both peers, or one, or none
        peers) bench peers 170 --peer diffusers --peer torch-compile || bench eager 110 --peer diffusers || bench alone 90 ;;
        startup) part startup 110 "$python" benchmarks/startup.py --model "$model" --size "$size" --steps "$steps" ;;
        precisions) step precisions 120 --compare precisions ;;
        precisions-*) step "$each" 120 --compare precisions --batch "${each#precisions-}" ;;
        batch-*) bench "$each" 110 --batch "${each#batch-}" ;;
        *) echo "gpu.sh: PARTS has '$each'; the parts are named at the top of benchmarks/gpu.sh" >&2; exit 2 ;;
    esac
done
wait "$weights"
"$python" benchmarks/gpu_table.py "$folder"
cat "$folder/gpu.md"
