#!/usr/bin/env bash
# Measure a CUDA card: the numbers of the README's tables, in about ten minutes.
#
#   tests/gpu/measure.sh FOLDER            every run below, in order of importance
#   tests/gpu/measure.sh FOLDER RUN...     only these
#
# It needs this checkout and a Python with torch, Triton, numpy, typer, rich, loguru, safetensors,
# sentencepiece and huggingface_hub; for the comparison also einops and moshi 0.2.13
# (pip install --no-deps), for pictures matplotlib. No Pipecat, no network, no checkpoint: weights
# are random unless MODEL names others. The tests in this folder need pytest, and for whole
# conversations av, pyloudnorm, soundfile and soxr.
#
# FOLDER gets results.jsonl (one object a run), tables.md, log.txt and a picture of the step times.
# A run that fails or takes too long is listed at the end; the others still run.
set -uo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'
    exit 2
fi
mkdir -p "$1" && folder=$(cd "$1" && pwd) || exit 2
shift
chosen=" $* "

cd "$(dirname "$0")/../.." || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
model=${MODEL:---random-7b}           # or: --model FOLDER
device=${DEVICE:-cuda}
budget=${BUDGET_SECONDS:-400}         # no run starts later than this
longest=${RUN_SECONDS:-180}           # time limit of one run
minutes=${MINUTES:-0.5}               # of real time per number of sessions
frames=${FRAMES:-300}
# Sessions with 8-bit weights and bfloat16 or fp8 keys and values, and with bfloat16 weights, that
# fit into 141 GB or 80 GB. For a smaller device set CALLERS, CALLERS_FP8 and CALLERS_BF16.
mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -n 1)
if [ "${mib:-0}" -ge 120000 ]; then most=64,80 most_fp8=64,160 most_bf16=64; else
    most=32,44 most_fp8=64,86 most_bf16=32
fi
many=${CALLERS:-$most}
many_fp8=${CALLERS_FP8:-$most_fp8}
many_bf16=${CALLERS_BF16:-$most_bf16}

: >"$folder/results.jsonl"
: >"$folder/tables.md"
: >"$folder/log.txt"
failed=()

run() {
    local name=$1 output code
    shift
    [[ $chosen =~ ^\ *$ || $chosen == *" $name "* ]] || return 0
    if [ $SECONDS -ge "$budget" ]; then
        echo "$name: skipped, $SECONDS seconds are gone"
        failed+=("$name")
        return 0
    fi
    # shellcheck disable=SC2206  # MODEL may be two words
    local command=(-m pipecat_personaplex.cli bench $model --device "$device" --markdown "$@")
    echo "== $name: ${command[*]}" | tee -a "$folder/log.txt"
    local began=$SECONDS
    output=$(timeout -k 10 "$longest" "$python" "${command[@]}" 2>>"$folder/log.txt")
    code=$?
    printf '%s\n' "$output" | sed '/^{/d' | tee -a "$folder/log.txt"
    if [ $code -ne 0 ]; then
        echo "$name: exit code $code after $((SECONDS - began)) seconds; see $folder/log.txt"
        failed+=("$name")
        return 0
    fi
    printf '{"run": "%s", "report": %s}\n' "$name" "$(tail -n 1 <<<"$output")" \
        >>"$folder/results.jsonl"
    {
        printf '## %s\n\n`personaplex bench %s`\n\n' "$name" "${command[*]:3}"
        awk '/; torch /{shown = 1} shown' <<<"$output" | sed '$d'
        echo
    } >>"$folder/tables.md"
    echo "$name: $((SECONDS - began)) seconds"
}

one=(--sessions 1 --fill full --frames "$frames")
real_time=(--fill full --frames "$frames" --minutes "$minutes" --measure steps,parts,bandwidth)

# One session: the whole report in bfloat16, compared with moshi; then with 8-bit weights.
run one-bf16 "${one[@]}" --peer moshi
run one-int8 "${one[@]}" --quantization int8

# Many sessions with full windows, in real time.
run many-int8-kv-fp8 --sessions "$many_fp8" --quantization int8 --kv-dtype fp8 "${real_time[@]}" \
    --histogram "$folder/many-int8-kv-fp8.png"
run many-int8 --sessions "$many" --quantization int8 "${real_time[@]}" \
    --histogram "$folder/many-int8.png"

# The other weight formats.
run one-fp8 "${one[@]}" --quantization fp8 --measure steps,parts,bandwidth
run one-int4 "${one[@]}" --quantization int4 --measure steps,parts,bandwidth
run many-bf16 --sessions "$many_bf16" "${real_time[@]}"

# Step time by number of sessions.
run growth-bf16 --sessions 1,2,4,8,16,32 --fill full --frames 100 --measure steps
run growth-int8 --sessions 1,2,4,8,16,32 --fill full --frames 100 --measure steps \
    --quantization int8

if [ ${#failed[@]} -gt 0 ]; then
    echo "not measured: ${failed[*]}"
    exit 1
fi
