#!/usr/bin/env bash
# Trains the starter model on a machine with one GPU in 8 minutes:  bash benchmarks/train_starter_gpu.sh [--dry-run]
#
# Scenes, prompts and targets are made on the device. Run it again with the same STARTER_WORK and it goes on, so that the
# training may be cut into several calls. Each call writes into $OUT what there is: starter.safetensors (float16,
# segment-anything's layout, from the first minute on), train_starter_gpu.json (settings, curve, IoU on held-out scenes)
# and, for every data set that is there, evaluation_starter_gpu_<name>.json.
# Needs Python with torch, Pillow, scipy, scikit-image, PyYAML, safetensors, filelock and fsspec; to evaluate, all that
# the package needs.
#
#   PYTHON               python3
#   STARTER_DEVICE       cuda
#   STARTER_CONFIG       configs/starter_gpu.yaml
#   STARTER_SECONDS      420, of training over all calls; the learning rate follows it
#   STARTER_CALL         seconds of training in this call, default all
#   STARTER_IMAGES       images a step, default those of the configuration
#   STARTER_WORK         starter-output/gpu, where the checkpoint (about 60 MB) is kept between calls
#   STARTER_EVALUATION   "name=folder ...": data sets with images/ and instances.json or segments/ in them
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
device=${STARTER_DEVICE:-cuda}
config=${STARTER_CONFIG:-configs/starter_gpu.yaml}
seconds=${STARTER_SECONDS:-420}
call=${STARTER_CALL:-}
images=${STARTER_IMAGES:-}
evaluation=${STARTER_EVALUATION:-}
results=${OUT:-$root/benchmarks/results}
work=${STARTER_WORK:-$root/starter-output/gpu}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$results" "$work"
results=$(cd "$results" && pwd)
work=$(cd "$work" && pwd)
cd "$root" || exit 1

train=("$python" benchmarks/train_starter_gpu.py --config "$config" --work "$work" --output "$results"
    --device "$device" --seconds "$seconds")
[ -n "$call" ] && train+=(--stop-after "$call")
[ -n "$images" ] && train+=(--images-per-step "$images")
if [ "${1:-}" = --dry-run ]; then
    printf '%q ' "${train[@]}"
    printf '\n'
    exit 0
fi

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"${train[@]}" || exit 1

for entry in $evaluation; do
    name=${entry%%=*}
    printf '\n== evaluation on %s\n' "$name"
    # The photographs that it was trained on are left out.
    "$python" -m data_engine.cli evaluate "${entry#*=}" --model "$results/starter.safetensors" --device "$device" \
        --config quickstart --leave-out examples/photos/train --output "$results/evaluation_starter_gpu_$name.json" ||
        echo "evaluation on $name failed; the weights are in $results/starter.safetensors"
done
