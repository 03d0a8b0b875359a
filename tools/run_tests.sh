#!/usr/bin/env bash
# Runs each test program, prints its output when it fails, and ends with one line: N passed, N failed, N skipped.
# Counts cmocka's own summaries (one per group), lines "skip: why" of programs that skip as a whole, and a last line
# "N passed, N failed, N skipped" of other runners. A program that crashes, hangs or runs no test counts as one failed.
set -u
# Programs run JOBS at a time (twice the processors: many wait for timers), each alone in its output; they are judged in the order given.
limit_s=${TEST_TIMEOUT_S:-600}
jobs=${JOBS:-$((2 * $(nproc)))}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

# Prints "PASSED FAILED SKIPPED ANNOUNCED" of one program's output.
count='
match($0, /\[==========\] Running [0-9]+ test/)              { announced += number(21) }
match($0, /\[  PASSED  \] [0-9]+ test\(s\)\./)               { p += number(13) }
match($0, /\[  FAILED  \] [0-9]+ test\(s\), listed below:/)  { f += number(13) }
match($0, /\[  SKIPPED \] [0-9]+ test\(s\), listed below:/)  { s += number(13) }
/^\[  ERROR   \] [^-]/                                        { f++ } # a setup that failed
/^skip: /                                                    { lines++ }
/^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { other_p = $1; other_f = $3; other_s = $5; announced += $1 + $3 + $5 }
function number(at) { return substr($0, RSTART + at, RLENGTH) + 0 }
END {
    more = lines - s          # tests that said "skip: why" and then returned
    if (more > p && p > 0) more = p
    if (more > 0) { s += more; if (announced > 0) p -= more }
    print p + other_p, f + other_f, s + other_s, announced + 0
}'

run_one() { # NUMBER PROGRAM
    timeout -k 5 "$limit_s" "$2" >"$work/$1.raw" 2>&1 </dev/null
    echo $? >"$work/$1.rc"
}

i=0
for t in "$@"; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    i=$((i + 1)) # here, not in the command: that runs in a subshell
    run_one $i "$t" &
done
wait

i=0
for t in "$@"; do
    i=$((i + 1))
    out=$(tr -d '\0' <"$work/$i.raw")
    rc=$(cat "$work/$i.rc")
    read -r p f s announced < <(awk "$count" <<<"$out")
    why="exit $rc"
    [ $rc -eq 124 ] && why="no end within $limit_s s"
    if [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1
    elif [ $rc -eq 0 ] && [ $((p + f + s)) -eq 0 ]; then
        f=1 why="it ran no test"
    elif [ $rc -eq 0 ] && [ $((p + f + s)) -lt "$announced" ]; then
        f=$((f + 1)) why="it ended before all of its $announced tests had run"
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$f" -gt 0 ]; then
        printf '%s\n--- %s: %s\n' "$out" "$t" "$why"
    else
        grep -E '^skip: ' <<<"$out" || true
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ] && [ $# -gt 0 ]
