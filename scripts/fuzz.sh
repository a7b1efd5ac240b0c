#!/bin/sh
# Fuzz the readers (atheris) and the kernels (libFuzzer under ASan and UBSan), from a fixed seed.
#
# scripts/fuzz.sh            a number of runs that takes some seconds, as in CI
# scripts/fuzz.sh SECONDS    each target for this long; what was learned stays in build/fuzz
#
# Needs python3 with tq3, its extra "test" and atheris in PATH, and clang++ with its fuzzer runtime: Debian's clang and
# libclang-rt-*-dev, which are installed if this runs as root. What is missing is said and left out; with FUZZ_REQUIRED=1
# in the environment, as in CI, the script then ends with 1.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
work=$root/build/fuzz
mkdir -p "$work"
export PYTHONDONTWRITEBYTECODE=1

# A crash ends the script; the input that made it lies in build/fuzz.
fuzz() {
    name=$1 runs=$2 limit=$3
    shift 3
    budget=-runs=$runs corpus=$(mktemp -d)
    if [ "$seconds" ]; then
        budget=-max_total_time=$seconds corpus=$work/corpus-$name
        mkdir -p "$corpus"
    fi
    if ! "$@" "$corpus" -seed=1 "$budget" -max_len="$limit" -timeout=10 -artifact_prefix="$work/$name-" \
        >"$work/$name.log" 2>&1; then
        tail -n 40 "$work/$name.log" >&2
        exit 1
    fi
    echo "fuzz $name: $(grep -o 'DONE.*cov: [0-9]*' "$work/$name.log" | grep -o 'cov.*'), $(tail -n 1 "$work/$name.log")"
    [ "$seconds" ] || rm -rf "$corpus"
}

skipped=
skip() {
    echo "fuzz: $1 SKIPPED, $2" >&2
    skipped="$skipped $1"
}

has_fuzzer_runtime() {
    echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$work/empty.cpp"
    clang++ -fsanitize=fuzzer,address,undefined "$work/empty.cpp" -o "$work/empty" 2>/dev/null
}

install_fuzzer_runtime() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    { apt-get update && apt-get install --yes --no-install-recommends clang && version=$(clang -dumpversion | cut -d. -f1) &&
        apt-get install --yes --no-install-recommends "libclang-rt-$version-dev"; } >/dev/null 2>&1 ||
        echo "fuzz: apt-get failed" >&2
}

build_kernels() {
    native=$root/tq3/codec/native
    flags="-std=c++20 -O1 -g -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-omit-frame-pointer -I$native
        -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=all"
    pids=
    compile() {
        source=$1
        shift
        # shellcheck disable=SC2086
        clang++ $flags "$@" -c "$source" -o "$work/$(basename "$source" .cpp).o" &
        pids="$pids $!"
    }
    rm -f "$work"/*.o
    case $(uname -m) in
    x86_64 | amd64)
        compile "$native/avx512.cpp" -mavx512f -mavx512bw -mavx512dq -mavx512vl
        compile "$native/avx2.cpp" -mavx2 -mf16c
        ;;
    aarch64 | arm64) compile "$native/neon.cpp" ;;
    esac
    compile "$native/portable.cpp"
    compile "$native/dispatch.cpp"
    compile tests/fuzz/fuzz_kernels.cpp
    for pid in $pids; do wait "$pid"; done
    clang++ -fsanitize=address,undefined,fuzzer "$work"/*.o -o "$work/fuzz_kernels"
}

seconds=${1:-}
if python3 -c "import atheris" 2>/dev/null; then
    fuzz headers 100000 4096 env PYTHONPATH=tests python3 -m support.fuzz.fuzz headers
    fuzz folders 50000 4096 env PYTHONPATH=tests python3 -m support.fuzz.fuzz folders
    fuzz quantised 10000 512 env PYTHONPATH=tests python3 -m support.fuzz.fuzz quantised
else
    skip readers "there is no atheris for this Python"
fi
has_fuzzer_runtime || install_fuzzer_runtime
if has_fuzzer_runtime; then
    build_kernels
    fuzz kernels 3000 512 "$work/fuzz_kernels"
else
    skip kernels "needs clang++ with its fuzzer runtime"
fi
if [ "$skipped" ] && [ "${FUZZ_REQUIRED:-}" = 1 ]; then
    echo "fuzz: FUZZ_REQUIRED=1, and not fuzzed:$skipped" >&2
    exit 1
fi
