#!/bin/sh
# What only a GPU can tell, in at most ten minutes: a step beside the plain way, memory as estimated,
# two trials side by side, what happens when memory ends, bfloat16 (benchmarks/gpu.py).
#
#     benchmarks/gpu.sh [--tiny] [FOLDER]
#
# Takes the python that is first on PATH, or $PYTHON. FOLDER (default: build/gpu) gets a Parquet file
# for each part. --tiny: a tiny model on any processor, to try the script itself. A part that fails
# or takes too long is said at the end, and the others run.
set -u
cd "$(dirname "$0")/.." || exit 1
TINY=""
if [ "${1:-}" = "--tiny" ]; then TINY="--tiny"; shift; fi
OUT="${1:-build/gpu}"
PYTHON="${PYTHON:-python}"
if [ -z "$TINY" ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "benchmarks/gpu.sh needs a GPU that torch sees; --tiny tries the script without one" >&2
  exit 1
fi
failed=""
# seconds: 90 + 210 + 120 + 60 + 90, under ten minutes together
part() {
  echo "== $1 (at most $2 s)"
  timeout "$2" "$PYTHON" -m benchmarks.gpu "$1" "$OUT" $TINY || failed="$failed $1"
}
part step 90
part memory 210
part together 120
part out_of_memory 60
part bfloat16 90
if [ -n "$failed" ]; then
  echo "failed or over time:$failed" >&2
  exit 1
fi
echo "tables in $OUT"
