#!/usr/bin/env bash
# Correctness and speed on a machine with one GPU, in eight minutes:  bash benchmarks/run_gpu.sh [--dry-run]
#
# Prints what the machine is, runs the tests that can run here, then measures, the most telling steps first. Each step
# writes gpu_<step>.json into $OUT, else into benchmarks/results, so what a cut leaves is whole.
# Needs Python with torch, Triton, Pillow, pyarrow, rich, safetensors, filelock, fsspec and rlemasklib. What else is there
# takes part: pytest with pytest-xdist and hypothesis for the tests, of which more can run with pycocotools and pydantic;
# segment-anything and transformers to be compared with.
#
#   PYTHON              python3
#   GPU_BENCH_DEVICE    cuda
#   GPU_BENCH_MODELS    "vit_h vit_b vit_l starter": steps of other models are left out
#   GPU_BENCH_STEPS     names of steps, default all
#   GPU_BENCH_SIZE      2250x1500, width and height of the photographs
#   GPU_BENCH_POINTS    points a side, default those of the step
#   GPU_BENCH_SECONDS   480, for everything
#   GPU_BENCH_TESTS     150, seconds for the tests, 0 for none
#   GPU_BENCH_OPTIONS   further options of every step, e.g. --compiled
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}") || { echo "there is no ${PYTHON:-python3}: say which with PYTHON"; exit 1; }
[[ $python == /* ]] || python=$PWD/$python  # steps run from another folder
device=${GPU_BENCH_DEVICE:-cuda}
models=${GPU_BENCH_MODELS:-vit_h vit_b vit_l starter}
steps=${GPU_BENCH_STEPS:-}
size=${GPU_BENCH_SIZE:-2250x1500}
points=${GPU_BENCH_POINTS:-}
budget=${GPU_BENCH_SECONDS:-480}
test_seconds=${GPU_BENCH_TESTS:-150}
results=${OUT:-$root/benchmarks/results}
dry_run=false
[ "${1:-}" = --dry-run ] && dry_run=true
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
failed=()

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$results"
results=$(cd "$results" && pwd)
cd "$root" || exit 1

left() { echo $((budget - SECONDS)); }
title() { printf '\n== %s  (%d s gone)\n' "$1" "$SECONDS"; }
has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

facts() {
    title "machine"
    command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm --format=csv,noheader
    "$python" - "$device" <<'PYTHON'
import platform, sys
from data_engine.bench.machine import machine_facts
import torch
device = torch.device(sys.argv[1])
for name, value in machine_facts(device).items():
    print(f"{name:12} {value}")
if device.type == "cuda":
    print(f"{'capability':12} {torch.cuda.get_device_capability(device)}")
PYTHON
}

# Test files whose imports are all installed, of the rooms that need neither Ray nor a network.
runnable_tests() {
    "$python" - <<'PYTHON'
import ast, importlib.util, sys
from pathlib import Path

own = {path.stem for path in Path("tests").iterdir()}
stood_in_for = {"torchvision"}
known = {}


def file_of(module):
    """Of a module of the package or of the tests."""
    base = Path(*module.split(".")) if module.startswith("data_engine") else Path("tests", *module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def missing(path):
    """Packages that are not here and that a file imports when it is loaded, or what it imports of ours."""
    if path in known:
        return known[path]
    lacking = known[path] = set()
    tops = ast.parse(path.read_text()).body
    nodes = [node for top in tops for node in (top.body if isinstance(top, ast.With) else [top])]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    for name in names:
        root = name.split(".")[0]
        if root in own or root == "data_engine":
            lacking |= missing(of_ours) if (of_ours := file_of(name)) else set()
        elif root not in stood_in_for and importlib.util.find_spec(root) is None:
            lacking.add(root)
    return lacking


if lacking := missing(Path("tests/conftest.py")):
    sys.exit(f"tests/conftest.py needs {', '.join(sorted(lacking))}")
for files in ("masks/test_*", "sam/test_*", "parity/test_*", "bench/test_*", "train/test_*off_the_cpu"):
    for path in sorted(Path("tests").glob(f"{files}.py")):
        if lacking := missing(path):
            print(f"left out: {path}, which needs {', '.join(sorted(lacking))}", file=sys.stderr)
        else:
            print(path)
PYTHON
}

correctness() {
    local files seconds
    title "correctness"
    [ "$test_seconds" -gt 0 ] || { echo "left out, as asked"; return; }
    seconds=$(($(left) < test_seconds ? $(left) : test_seconds))
    if has pytest && files=$(runnable_tests) && [ -n "$files" ]; then
        local options=(-q -p no:cacheprovider --continue-on-collection-errors)
        has xdist && options+=(-n auto)
        has pytest_timeout || options+=(-o timeout= -W ignore::pytest.PytestConfigWarning)
        # shellcheck disable=SC2086
        run timeout -s INT -k 10 "$seconds" "$python" -m pytest "${options[@]}" $files || failed+=(tests)
    else
        echo "no tests without pytest: the starter's masks are compared with the reference's instead"
        run timeout "$seconds" "$python" -m data_engine.bench examples/photos/dog.jpg --model starter --device "$device" \
            --points-per-side "${points:-16}" --pred-iou-thresh 0.5 --stability-score-thresh 0.5 \
            --stability-score-offset 0.3 --crop-n-layers 1 --repeats 1 || failed+=(parity)
    fi
}

run() {
    if $dry_run; then
        echo "would run: $*"
    else
        "$@"
    fi
}

photographs() {
    title "photographs of $size"
    "$python" - "$size" "$work/photos" <<'PYTHON'
import sys
from pathlib import Path
from PIL import Image, ImageOps

width, height = map(int, sys.argv[1].split("x"))
folder = Path(sys.argv[2])
folder.mkdir()
for name in ("truck", "groceries", "motorcycle"):
    with Image.open(f"examples/photos/{name}.jpg") as image:
        fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    fitted.save(folder / f"{name}.jpg", quality=92)
    print(name, fitted.size, (folder / f"{name}.jpg").stat().st_size, "bytes")
PYTHON
}

# step NAME MODEL SECONDS OPTION...: one process, one JSON file. SECONDS is what it may take at most.
step() {
    local name=$1 model=$2 seconds=$3
    shift 3
    [[ " $models " == *" $model "* ]] || return 0
    [[ -z "$steps" || " $steps " == *" $name "* ]] || return 0
    title "$name"
    if [ "$(left)" -lt 20 ] && ! $dry_run; then
        echo "left out: $(left) s are left"
        failed+=("$name")
        return
    fi
    seconds=$(($(left) < seconds ? $(left) : seconds))
    $dry_run || rm -f "$results/gpu_$name.json"
    # From the folder of the photographs, so that the command in the result names no place of this machine.
    # shellcheck disable=SC2086
    (cd "$work" && run timeout "$seconds" "$python" -m data_engine.bench photos --model "$model" --device "$device" \
        "$@" ${points:+--points-per-side $points} ${GPU_BENCH_OPTIONS:-} --output "$results/gpu_$name.json") \
        || failed+=("$name")
}

# What the decoder's kernels bring over whole operations, apart from everything around them.
kernels() {
    title "decoder kernels"
    [[ -z "$steps" || " $steps " == *" decoder_kernels "* ]] || return 0
    run timeout 60 "$python" benchmarks/decoder_kernels.py --device "$device" \
        --output "$results/gpu_decoder_kernels.json" || failed+=(decoder_kernels)
}

"$python" -c "import data_engine.bench.__main__" || { echo "the benchmark cannot be imported: see what is missing above"; exit 1; }
facts || failed+=(facts)
correctness
kernels
photographs || exit 1

sa1b=(--crop-n-layers 2 --crop-n-points-downscale-factor 2 --min-mask-region-area 100)
both=(--limit 2 --repeats 2 --seconds 20)
against=transformers
has segment_anything && against=segment-anything,transformers
step vit_h_fast vit_h 90 --precision fast "${both[@]}"
step vit_b_fast vit_b 75 --precision fast "${both[@]}"
step sa1b_vit_h_fast vit_h 120 --precision fast "${sa1b[@]}" --limit 1 --repeats 1 --against none
step vit_h_reference vit_h 90 --precision reference "${both[@]}"
step vit_b_reference vit_b 120 --precision reference --against "$against" --limit 1 --repeats 2 --seconds 20
step vit_l_fast vit_l 75 --precision fast "${both[@]}"
step starter starter 60 --precision reference --pred-iou-thresh 0.5 --stability-score-thresh 0.5 \
    --stability-score-offset 0.3 "${both[@]}"

title "done"
ls -l "$results"/gpu_*.json 2>/dev/null
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed or left out: ${failed[*]}"
    exit 1
fi
