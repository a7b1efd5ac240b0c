#!/bin/sh
# A real model compressed, inspected, verified, restored, served packed and compared: each command is shown before it runs.
# Needs tq3 and its extra "demo" in PATH (`make demo` takes care of that). Everything is written
# below build/; the model is made once, the rest anew each time.
set -eu
cd "$(dirname "$0")/.."

model=build/smollm2
work=build/demo

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf "$work"
mkdir -p "$work"
run python scripts/make_demo_model.py "$model"
# Small models need more bits than large ones: see "Which settings?" in README.md.
run tq3 compress "$model" "$work/smollm2-tq3" --bits 4 --norms float16 --group-size 64
run tq3 inspect "$work/smollm2-tq3"
run tq3 verify "$work/smollm2-tq3" --source "$model"
run tq3 restore "$work/smollm2-tq3" "$work/smollm2-restored"
run python scripts/demo_compare.py "$model" "$work/smollm2-tq3" "$work/smollm2-restored"
