#!/usr/bin/env bash
# All tests: runs the steps below in order, each a make target with its own log in build/check/, and ends with one line
# "N passed, N failed, N skipped". A step ends with such a line itself; one without counts as one test.
set -u
logs=build/check
mkdir -p $logs
passed=0 failed=0 skipped=0 begun=$SECONDS

count() { # NAME RC LOG: adds the step's closing line, or the step itself
    local name=$1 rc=$2 log=$3 line p f s
    line=$(grep -oE '[0-9]+ passed(, [0-9]+ failed)?(, [0-9]+ skipped)?' "$log" | tail -n 1)
    p=$(grep -oE '[0-9]+ passed' <<<"$line" | grep -oE '[0-9]+') f=$(grep -oE '[0-9]+ failed' <<<"$line" | grep -oE '[0-9]+')
    s=$(grep -oE '[0-9]+ skipped' <<<"$line" | grep -oE '[0-9]+')
    [ -z "$line" ] && { [ "$rc" -eq 0 ] && p=1 || f=1; }
    [ "$rc" -ne 0 ] && [ "${f:-0}" -eq 0 ] && f=1
    passed=$((passed + ${p:-0})) failed=$((failed + ${f:-0})) skipped=$((skipped + ${s:-0}))
    printf '%-28s %4d passed %3d failed %3d skipped %5d s\n' "$name" "${p:-0}" "${f:-0}" "${s:-0}" $((SECONDS - step_begun))
}

step() { # NAME COMMAND...
    local name=$1 log=$logs/$1.log rc
    shift
    step_begun=$SECONDS
    [ -t 1 ] && printf '%-28s running\r' "$name"
    "$@" >"$log" 2>&1
    rc=$?
    count "$name" $rc "$log"
    grep -hE '^skip: ' "$log" | sort -u
    [ $rc -eq 0 ] || { echo "--- $name failed; the end of $log:"; tail -n 40 "$log"; echo "---"; }
}

make="make --no-print-directory -j2"
step layers $make layers
step format $make format-check
step build $make build
step docs $make docs-check docs-config-check
step unit $make unit
step unit-asan $make MODE=asan unit
step fuzz-smoke $make fuzz-smoke
step integration $make integration
step bench-gateway $make bench-gateway BENCH_SMOKE=1
step model $make model-quick
step faults $make faults-quick
step soak-asan $make MODE=asan SOAK_SECONDS=15 SOAK_CONNECTIONS=1000 soak

echo "$((SECONDS - begun)) s in all"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
