#!/usr/bin/env bash
# All that needs a GPU, in at most 25 minutes: the machine, tests marked `gpu`, memory, speed. Every step has a time
# limit of its own, goes on after one that fails, prints as it goes, and is a line of OUT/table.md.
#
#   bash benchmarks/gpu.sh [OUT]           where torch sees a CUDA device and hfadapt is installed
#   DRY=1 bash benchmarks/gpu.sh [OUT]     the same steps on a CPU, with tiny models and kept results
#   WHEELS=FOLDER bash benchmarks/gpu.sh   other tools are installed from there first, without an index
set -u

step() { # NAME SECONDS COMMAND…
    local name=$1 limit=$2 began=$SECONDS code result=ok
    shift 2
    printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*"
    timeout --kill-after=20 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
    code=${PIPESTATUS[0]}
    case $code in
        0) ;;
        124 | 137) result="cut off after $limit s" ;;
        *) result="failed, exit code $code" ;;
    esac
    local last
    last=$(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1 | cut -c1-100 | tr '|' '/')
    printf '| %s | %s | %s | %s |\n' "$name" "$result" "$((SECONDS - began))" "$last" >> "$OUT/table.md"
}

begin() {
    mkdir -p "$OUT"
    printf '| step | result | seconds | last line |\n|---|---|---:|---|\n' > "$OUT/table.md"
}

tools() { # those of the speed benchmark that can be imported here
    echo hfadapt
    for pair in trl:trl-nf4 unsloth:unsloth axolotl:axolotl; do
        "$PYTHON" -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('${pair%%:*}'))" && echo "${pair##*:}"
    done
}

main() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
    begin
    if [ -n "${WHEELS:-}" ]; then
        step wheels 240 "$PYTHON" -m pip install --no-index --find-links "$WHEELS" trl unsloth axolotl
    fi
    if [ -n "${DRY:-}" ]; then
        step machine 120 "$PYTHON" -m hfadapt doctor
        step tests 300 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/gpu
        step memory 300 "$PYTHON" benchmarks/memory_grid.py --table
        cp benchmarks/speed.json "$OUT/speed.json"
        step speed 60 "$PYTHON" benchmarks/speed.py --table --record "$OUT/speed.json"
    else
        step machine 30 nvidia-smi
        step doctor 120 "$PYTHON" -m hfadapt doctor
        step tests 240 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/gpu
        step memory-1b 240 "$PYTHON" benchmarks/memory_grid.py --device cuda --only llama-1b --out "$OUT/memory-1b.json"
        step memory-8b 240 "$PYTHON" benchmarks/memory_grid.py --device cuda --only llama-8b --out "$OUT/memory-8b.json"
        local asked=()
        for tool in $(tools); do asked+=(--tool "$tool"); done
        step speed 600 "$PYTHON" benchmarks/speed.py --device cuda --here --seeds 1 "${asked[@]}" --record "$OUT/speed.json"
    fi
    printf '\n'
    cat "$OUT/table.md"
}

PYTHON=${PYTHON:-python}
OUT=$(realpath -m "${1:-${OUT:-gpu-results}}")
if [ "${BASH_SOURCE[0]}" = "$0" ]; then main; fi
