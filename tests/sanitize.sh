#!/usr/bin/env bash
# Builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer, then runs the op tests
# on them. The CUDA kernels' bodies (core/) run on the host in the driver tests/sanitize_rows.cpp.
#
#     tests/sanitize.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
work=build/sanitize
rm -rf "$work"
mkdir -p "$work"
flags=(-std=c++17 -g -O1 -fno-omit-frame-pointer -fopenmp -ffp-contract=off
       -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi
       -DBACKSIGHT_NO_CLONES -Icsrc)

# A copy of the package with a sanitized module. The last call decides Python's suffix for it.
cp -r src/backsight "$work/backsight"
rm -f "$work"/backsight/_C*.so
suffix=$("$python" -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
read -ra includes <<<"$("$python" -m pybind11 --includes)"
mkdir "$work/kernels"
{
    echo "$work/driver.o tests/sanitize_rows.cpp"
    echo "$work/bindings.o csrc/bindings.cpp"
    for source in csrc/cpu/*.cpp; do
        echo "$work/kernels/$(basename "$source" .cpp).o $source"
    done
} | xargs -P "$(nproc)" -L 1 bash -c \
    'g++ '"${flags[*]} ${includes[*]}"' -fPIC -fvisibility=hidden -c -o "$0" "$1"'

# The driver needs no Python, so leaks count too.
g++ "${flags[@]}" "$work/driver.o" "$work"/kernels/*.o -o "$work/rows"
"$work/rows"
g++ "${flags[@]}" -shared "$work/bindings.o" "$work"/kernels/*.o -o "$work/backsight/_C$suffix"

# Python itself leaks and is not built for the sanitizers, which therefore have to be loaded first.
# -s: what a sanitizer says on its way out must not be captured. The large and compiled cases are left out: they add minutes and no code path.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$PWD/$work" PYTHONDONTWRITEBYTECODE=1 \
    "$python" -m pytest -q -s -p no:cacheprovider tests/ops \
    -k "not compiles and not Ptxas and not large_outputs and not imports_where" "$@"
