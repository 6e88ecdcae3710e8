#!/usr/bin/env bash
# Runs `cargo test` N times (3 unless told otherwise) on the machine as it is, N times beside two busy
# loops, and N times on one core. Prints a line for each run, and the names of the tests that failed;
# the output of each run is kept in target/repeat. Fails where a run has failed.
#
#     tests/repeat.sh [N [arguments for cargo test]]
set -uo pipefail
cd "$(dirname "$0")/.."
runs=${1:-3}
shift $(($# > 0 ? 1 : 0))

loops=()
end_loops() {
    [ ${#loops[@]} = 0 ] || kill "${loops[@]}" 2>/dev/null
    loops=()
}
trap end_loops EXIT
trap 'exit 130' INT TERM

logs=target/repeat
mkdir -p "$logs"
cargo test --quiet --no-run "$@" || exit 1

status=0
repeat() { # NAME COMMAND…
    local name=$1 number log start outcome
    shift
    for ((number = 1; number <= runs; number++)); do
        log=$logs/$name-$number.log
        start=$SECONDS
        if "$@" >"$log" 2>&1; then outcome=ok; else outcome=failed status=1; fi
        echo "$name $number: $outcome, $((SECONDS - start)) s"
        sed -n 's/^test \(.*\) \.\.\. FAILED$/    \1/p' "$log" | sort -u
    done
}

repeat idle cargo test --no-fail-fast "$@"

for _ in 1 2; do
    while :; do :; done &
    loops+=($!)
done
repeat busy cargo test --no-fail-fast "$@"
end_loops

repeat one-core taskset -c 0 cargo test --no-fail-fast "$@"
exit "$status"
