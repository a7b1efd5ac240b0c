#!/bin/sh
# Run the NEON kernels under an emulator and compare them with the reference.
#
# Needs python3 with tq3 and its extra "test" in PATH, and Debian's g++-aarch64-linux-gnu and qemu-user, which are
# installed if this runs as root. Without them it says so and succeeds: they exist for Debian only.
set -eu
cd "$(dirname "$0")/.."

have_tools() {
    command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null
}

if ! have_tools && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update && apt-get install --yes --no-install-recommends g++-aarch64-linux-gnu qemu-user; } >/dev/null ||
        echo "check_neon: apt-get failed" >&2
fi
if ! have_tools; then
    echo "check_neon: SKIPPED, needs g++-aarch64-linux-gnu and qemu-user" >&2
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
codec=tq3/codec/native runtime=tq3/runtime/native
export PYTHONDONTWRITEBYTECODE=1
compile() {
    aarch64-linux-gnu-g++ -std=c++20 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror \
        -static -I$codec "$@"
}
compile tests/codec/neon_driver.cpp $codec/dispatch.cpp $codec/neon.cpp $codec/portable.cpp -o "$work/driver"
PYTHONPATH=tests python3 -m support.codec.neon_check qemu-aarch64 "$work/driver"

compile -march=armv8.2-a+dotprod -c $runtime/neon.cpp -o "$work/neon.o"
compile -I$runtime tests/runtime/linear_driver.cpp $runtime/linear_dispatch.cpp $runtime/layer.cpp \
    $runtime/portable.cpp "$work/neon.o" -o "$work/linear_driver"
PYTHONPATH=tests python3 -m support.runtime.driver_check qemu-aarch64 "$work/linear_driver"
