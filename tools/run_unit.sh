#!/bin/sh
# Runs cmocka test programs one after another; prints the output of those that fail and one closing line.
# Usage: run_unit.sh PROGRAM...   Exit status: 0 when all passed.
passed=0 failed=0 skipped=0
for program in "$@"; do
    if out=$("$program" 2>&1); then ok=1; else ok=0; fi
    p=$(printf '%s\n' "$out" | sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' | tail -1)
    f=$(printf '%s\n' "$out" | sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' | tail -1)
    s=$(printf '%s\n' "$out" | grep -c '^\[  SKIPPED \] [a-zA-Z_]*$')
    passed=$((passed + ${p:-0})) skipped=$((skipped + s))
    if [ $ok = 0 ]; then
        failed=$((failed + ${f:-1}))
        printf '%s\n' "$out" "FAILED: $program"
    fi
done
echo "unit: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
