#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in under nine minutes: build with CUDA, run the CUDA tests,
# compute-sanitizer on the kernels, and the benchmark table into bench/results/<date>-<gpu>.md.
# Wanted: a CUDA build of torch, nvcc, and the dev dependencies, for $PYTHON (default: .venv's, else
# python3). Every stage runs whatever the others did; the exit status is 1 if any failed.
set -u
cd "$(dirname "$0")/.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
if ! gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null); then
  echo "bench/gpu.sh: expected a GPU that $python's torch can use, found none" >&2
  exit 1
fi
results=bench/results/$(date +%Y-%m-%d)-$(echo "$gpu" | tr -cs 'A-Za-z0-9\n' '-').md
failed=()

stage() { # stage NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=10 "$limit" "$@"
  local status=$?
  [ $status -eq 124 ] && echo "== $name: stopped after $limit s"
  [ $status -ne 0 ] && failed+=("$name")
  echo "== $name: exit $status after $((SECONDS - start)) s"
}

# Without a network there is no build isolation; the build requirements must then be installed.
isolation=()
"$python" -c 'import pybind11, setuptools' 2>/dev/null && command -v cmake ninja >/dev/null &&
  isolation=(--no-build-isolation)
stage build 150 env BACKSIGHT_CUDA=ON BACKSIGHT_WERROR=ON \
  "$python" -m pip install --quiet --no-deps ${isolation[@]+"${isolation[@]}"} --editable .
stage tests 90 "$python" -m pytest -q -x tests -k "cuda or gpu"

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ -x "$sanitizer" ]; then
  for tool in memcheck racecheck initcheck; do
    stage "$tool" 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" \
      --error-exitcode 1 --target-processes all \
      "$python" -m pytest -q -x tests/ops -k "cuda or gpu"
  done
else
  echo "== compute-sanitizer: not installed, not run"
  failed+=(compute-sanitizer)
fi

mkdir -p bench/results
stage bench 165 env BENCH_RESULTS="$results" \
  "$python" -m pytest -q -s bench/test_gpu.py --benchmark-only --benchmark-columns=median,iqr,rounds

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}" >&2
  exit 1
fi
echo "all stages passed; results in $results"
