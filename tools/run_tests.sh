#!/bin/sh
# Runs the unit and the end-to-end tests and closes with one line "N passed, N failed, N skipped".
# Usage: run_tests.sh PROGRAM...   Exit status: 0 when nothing failed.
out=$(mktemp) status=0
sh tools/run_unit.sh "$@" | tee "$out"
sh tools/run_e2e.sh 2>&1 | tee -a "$out"
unit() { sed -n "s/^unit: .*\\b\\([0-9][0-9]*\\) $1.*/\\1/p" "$out" | tail -1; }
e2e() { grep -E '(passed|failed|error).* in [0-9.]+s' "$out" | tail -1 | sed -n "s/.*\\b\\([0-9][0-9]*\\) $1.*/\\1/p"; }
n() { a=$(unit "$1"); b=$(e2e "$1"); echo $((${a:-0} + ${b:-0})); }
errors=$(e2e error)
failed=$(($(n failed) + ${errors:-0}))
grep -qE '(passed|failed|error).* in [0-9.]+s' "$out" || failed=$((failed + 1)) # pytest itself did not run
[ "$failed" = 0 ] || status=1
echo "$(n passed) passed, $failed failed, $(n skipped) skipped"
rm -f "$out"
exit $status
