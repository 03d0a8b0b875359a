#!/usr/bin/env bash
# Replays the committed corpus of each fuzz target, and ends with one line: N passed, N failed, N skipped.
# Usage: tools/fuzz_replay.sh DIRECTORY-OF-TARGETS NAME...
set -u
dir=$1
shift
passed=0 failed=0 skipped=0
for name in "$@"; do
    corpus=tests/fuzz/corpus/$name
    if ! compgen -G "$corpus/*" >/dev/null; then
        echo "skip: fuzz $name: $corpus is empty"
        skipped=$((skipped + 1))
    elif out=$("$dir/${name}_fuzz" -runs=0 -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$dir/replay-$name-" "$corpus" 2>&1); then
        passed=$((passed + 1))
    else
        printf '%s\n--- fuzz %s: a committed input fails\n' "$out" "$name"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
