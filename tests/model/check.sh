#!/usr/bin/env bash
# Checks the models exhaustively and shows that every mutant breaks an assertion: tests/model/check.sh [quick]
# quick: one fault of all kinds, two requests on the quota, and some mutants. One check at a time, at most MODEL_MB and
# MODEL_SECONDS each; one line a check, and at the end "N passed, N failed, N skipped".
set -u
here=$(cd "$(dirname "$0")" && pwd)
limit_mb=${MODEL_MB:-16000} limit_s=${MODEL_SECONDS:-1800}
passed=0 failed=0

for program in spin cc; do
    command -v $program >/dev/null || { echo "skip: no $program"; echo "0 passed, 0 failed, 1 skipped"; exit 0; }
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1

verdict() { # OK TEXT
    [ "$1" = yes ] && passed=$((passed + 1)) || failed=$((failed + 1))
    printf '%-6s %s\n' "$([ "$1" = yes ] && echo ok || echo FAILED)" "$2"
}

run() { # MODEL FLAG...: leaves states, why (the assertion that broke) and whole (yes: every state was seen)
    local model=$1 begun=$SECONDS
    shift
    states=0 why='' whole=no
    spin -a "$@" "$here/$model.pml" >out 2>&1 && cc -O2 -w -DSAFETY -DCOLLAPSE -DVECTORSZ=2048 -DMEMLIM="$limit_mb" -o pan pan.c >>out 2>&1 || {
        cat out
        return
    }
    timeout "$limit_s" ./pan -E -m1000000 -w24 >out 2>&1
    local rc=$?
    states=$(awk '/states, stored/ { printf "%.0f", $1 }' out)
    mb=$(awk '/total actual memory/ { printf "%.0f", $1 }' out)
    why=$(sed -n 's/^pan:1: assertion violated \(.*\) (at depth.*/\1/p' out | head -n 1)
    [ $rc -eq 0 ] && grep -q 'errors: 0' out && ! grep -qE 'not completed|search depth too small|out of memory' out && whole=yes
    took=$((SECONDS - begun))
}

holds() { # MODEL FLAG...
    run "$@"
    verdict $whole "$*: ${why:+broken: $why; }$states states, ${mb:-?} MB, ${took:-?} s$([ -z "$why" ] && [ $whole = no ] && echo ', not exhaustive')"
}

caught() { # MODEL MUTANT
    run "$1" "-DMUTANT_$2" "${@:3}"
    verdict "$([ -n "$why" ] && echo yes || echo no)" "$1, mutant $2: ${why:-not caught}"
}

names_exist() { # the functions and files that a model's head names
    local model=$1 file list name found missing=''
    while IFS=: read -r file list; do
        found=$(ls "$here"/../../{router,worker}/"$file" 2>/dev/null | head -n 1)
        [ -n "$found" ] || { missing+=" $file"; continue; }
        for name in ${list//,/ }; do grep -qw "$name" "$found" || missing+=" $file:$name"; done
    done < <(awk '/\*\//{exit} {print}' "$here/$model.pml" | grep -oE '[a-z_]+\.(c|lua): [a-z_]+(, [a-z_]+)*')
    verdict "$([ -z "$missing" ] && echo yes || echo no)" "$model: every function that its head names is there${missing:+, but not:$missing}"
}

mutants() { grep -oE 'MUTANT_[A-Z]+[A-Z_]*' "$here/$1.pml" | sort -u | sed 's/^MUTANT_//'; }

names_exist request
names_exist quota
if [ "${1:-}" = quick ]; then
    holds request -DBUDGET=1
    holds quota -DREQUESTS=2 -DWIPES=1
    for m in NO_FENCE FENCE_ON_ATTEMPT SWEEP_WITHOUT_FENCE SWEEP_TAKES_HOLDS NO_MARK DROP_BEFORE_COMMIT COUNT_ON_CONFLICT; do caught request $m -DBUDGET=1; done
    for m in HOLD_IN_TWO_STEPS RELEASE_TWICE; do caught quota $m; done
else
    for m in $(mutants request); do
        case $m in RETURN_KEEPS_NUMBER | DROP_WITHOUT_THE_ROW) faults=2 ;; *) faults=1 ;; esac
        caught request "$m" -DBUDGET=$faults
    done
    for m in $(mutants quota); do caught quota "$m"; done
    holds quota
    holds request -DBUDGET=1
    holds request -DBUDGET=1 -DATTEMPTS=3
    holds request -DBUDGET=2
fi
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
