#!/bin/sh
# Shrink a diffusion model, gate it, and publish it. Run it again after any stop: every step goes on where it was.
#
#   TEACHER=demo RATIO=0.05 REPO=me/demo-small ./release.sh
#
# Exits with diffcompress's own codes: 0 released, 3 gates missed, 4 no access or licence, 5 does not fit, ...
# docs/release.md explains each step.
set -u

: "${TEACHER:=demo}" "${RATIO:=0.05}" "${MAX_TIME:=30m}" "${OUT:=release}"
: "${LEAST_AGREEMENT:=0.95}" "${MOST_PARAMS:=100M}" "${RETRIES:=3}"
: "${REPO:=}" "${LICENSE:=}" "${SHRINK_OPTIONS:=}" "${EVALUATE_OPTIONS:=}"
mkdir -p "$OUT"

# A scheduler's SIGTERM reaches diffcompress too, which saves and exits 75: do not start it again then.
stopping=
trap 'stopping=1' TERM

# field FILE KEY.KEY: a value out of a JSON file
field() {
    python3 -c 'import functools, json, sys
print(functools.reduce(lambda value, key: value[key], sys.argv[2].split("."), json.load(open(sys.argv[1]))))' "$1" "$2"
}

# step NAME COMMAND...: run diffcompress, keep what it prints as NAME.json, act on its exit code
step() {
    name=$1
    shift
    tries=0
    while :; do
        diffcompress "$@" --json --quiet > "$OUT/$name.json" 2> "$OUT/$name.log"
        code=$?
        case $code in
            0) echo "release: $name done"; return 0 ;;
            1) why="failed" ;;
            2) why="was used wrongly" ;;
            3) why="missed a quality gate, see $OUT/gates.xml" ;;
            4) why="was refused: access or licence" ;;
            5) why="does not fit" ;;
            75)
                tries=$((tries + 1))
                if [ -z "$stopping" ] && [ "$tries" -le "$RETRIES" ]; then
                    echo "release: $name was stopped, going on ($tries of $RETRIES)" >&2
                    continue
                fi
                why="was stopped; run this script again to go on" ;;
            130) why="was interrupted; run this script again to go on" ;;
            *) why="ended with $code" ;;
        esac
        echo "release: $name $why" >&2
        cat "$OUT/$name.log" >&2
        exit "$code"
    done
}

shrink() {
    # shellcheck disable=SC2086  # options are split on purpose
    step "$@" "$TEACHER" --ratio "$RATIO" --max-time "$MAX_TIME" --output "$OUT/run" \
        ${LICENSE:+--license "$LICENSE"} $SHRINK_OPTIONS
}

# refuse WHY: what would stop the push in the end stops the script before anything is trained
refuse() {
    echo "release: $1" >&2
    exit 4
}

if [ -n "$REPO" ]; then
    told=$(hf auth whoami 2>&1) || refuse "no push to $REPO without \`hf auth login\` or HF_TOKEN: $told"
fi

step plan plan "$TEACHER" --ratio "$RATIO"
if [ -n "$REPO" ] && [ -z "$LICENSE" ] && grep -q "the licence is unknown" "$OUT/plan.json"; then
    refuse "the teacher's licence is unknown: find out what it allows and set LICENSE"
fi
echo "release: $(field "$OUT/plan.json" params) parameters, $(field "$OUT/plan.json" size_bytes) bytes"

shrink shrink shrink

# shellcheck disable=SC2086
step evaluate evaluate "$(field "$OUT/shrink.json" pipeline)" --teacher "$TEACHER" \
    --gate "params<$MOST_PARAMS" --gate "agreement>$LEAST_AGREEMENT" --junit "$OUT/gates.xml" $EVALUATE_OPTIONS

# The gates lie beside the pipeline now: into report and model card with them.
step report report "$OUT/run"

if [ -n "$REPO" ]; then
    # The same command with --push-to-hub: nothing is trained again.
    SHRINK_OPTIONS="$SHRINK_OPTIONS --push-to-hub $REPO"
    shrink push shrink
    echo "release: $(field "$OUT/push.json" pushed.url) at $(field "$OUT/push.json" pushed.commit)"
fi
echo "release: report in $(field "$OUT/shrink.json" report)"
