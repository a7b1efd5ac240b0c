#!/bin/sh
# Run tests/codec and the linear kernels under AddressSanitizer and UndefinedBehaviorSanitizer (GCC, Linux).
#
# Needs python with tq3's extras "test" and "runtime" in PATH. Everything is built and written in a temporary folder.
set -eu
cd "$(dirname "$0")/.."
source=$(pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --target "$work/site" \
    --config-settings=cmake.define.TQ3_SANITIZE=ON --config-settings=cmake.define.TQ3_WERROR=ON \
    --config-settings=build-dir="$work/build" --config-settings=install.strip=false .

# The linear kernels in a program of their own: torch does not live with the sanitizers.
codec=$source/tq3/codec/native runtime=$source/tq3/runtime/native
compile() {
    "${CXX:-g++}" -std=c++20 -O1 -g -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror \
        -fsanitize=address,undefined -fno-sanitize-recover -I"$codec" -I"$runtime" "$@"
}
objects=
amx=
kernel() {
    name=$1
    shift
    compile "$@" -c "$runtime/$name.cpp" -o "$work/$name.o"
    objects="$objects $work/$name.o"
}
kernel portable
case $(uname -m) in
x86_64)
    kernel avx2 -mavx2 -mf16c
    kernel avx512vnni -DTQ3_AMX -mamx-tile -mamx-int8 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi \
        -mavx512vnni -Wno-maybe-uninitialized
    amx=-DTQ3_AMX
    ;;
aarch64) kernel neon -march=armv8.2-a+dotprod ;;
esac
# shellcheck disable=SC2086
compile $amx tests/runtime/linear_driver.cpp "$runtime/linear_dispatch.cpp" "$runtime/layer.cpp" $objects -pthread \
    -o "$work/linear_driver"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests python -m support.runtime.driver_check "$work/linear_driver"

# The sanitizers' libraries must come first in the process; Python itself was built without them. libstdc++ comes with
# them so that they find the real `throw`.
library() { "${CXX:-g++}" -print-file-name="$1"; }
export LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export PYTHONPATH="$work/site" PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY="$work/hypothesis"

cd "$work"
python - "$work" <<'END'
import sys
from tq3.codec.backend import _native, available_backends
assert _native is not None, "the kernels were not built"
assert _native.__file__.startswith(sys.argv[1]), f"an editable install hides them: {_native.__file__}"
print("sanitized:", *available_backends()[:-1])
END
# --capture=sys: a sanitizer writes its report to the file descriptor and ends the process.
python -m pytest -q --capture=sys -p no:cacheprovider --rootdir "$source" -c "$source/pyproject.toml" "$source/tests/codec"
