#!/usr/bin/env bash
# Runs each test program, prints its output when it fails, and ends with one line: N passed, N failed, N skipped.
set -u
passed=0 failed=0 skipped=0
for t in "$@"; do
    out=$("$t" 2>&1); rc=$?
    p=$(grep -c '\[       OK \]' <<<"$out"); s=$(grep -ciE '\[  SKIPPED \] [^0-9]|^skip: ' <<<"$out"); f=$(grep -c '\[  FAILED  \] [a-z_0-9]*$' <<<"$out")
    passed=$((passed + p)) skipped=$((skipped + s))
    if [ $rc -ne 0 ]; then failed=$((failed + (f > 0 ? f : 1))); printf '%s\n--- %s: exit %s\n' "$out" "$t" "$rc"; else grep -E '^skip: ' <<<"$out"; fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
