#!/bin/sh
# Runs fuzz targets one after another, FUZZ_S seconds each (default 10), from the repository's root. Seeds are read from
# tests/fuzz/corpus/NAME; what a run finds is kept in build/fuzz/corpus/NAME, an input that fails in build/fuzz/.
# Usage: run_fuzz.sh PROGRAM...   Exit status: 0 when nothing was found.
passed=0 failed=0
for program in "$@"; do
    name=$(basename "$program" | sed 's/^fuzz_//')
    found=build/fuzz/corpus/$name seeds=tests/fuzz/corpus/$name
    mkdir -p "$found"
    [ -d "$seeds" ] || seeds=
    if out=$("$program" -max_total_time="${FUZZ_S:-10}" -timeout=20 -rss_limit_mb=4096 -artifact_prefix="build/fuzz/$name-" \
        -print_final_stats=1 "$found" $seeds 2>&1); then
        runs=$(printf '%s\n' "$out" | sed -n 's/^stat::number_of_executed_units: *//p')
        passed=$((passed + 1))
        echo "fuzz $name: $runs inputs, nothing found"
    else
        failed=$((failed + 1))
        printf '%s\n' "$out" | tail -60
        echo "FAILED: fuzz $name"
    fi
done
echo "fuzz: $passed passed, $failed failed"
[ "$failed" = 0 ]
