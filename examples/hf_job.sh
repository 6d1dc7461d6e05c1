#!/bin/sh
# Shrink on a rented machine (Hugging Face Jobs). The run lies in a bucket; a quarter of an hour before the job's time is
# up it is told to stop, saves, and the job's next attempt goes on where it was.
#
#   TEACHER=me/flowers RATIO=0.1 BUCKET=me/runs HOURS=6 ./hf_job.sh
set -eu

: "${TEACHER:?}" "${BUCKET:?owner/name of a bucket}" "${RATIO:=0.05}" "${HOURS:=6}" "${ATTEMPTS:=4}"
: "${FLAVOR:=a100-large}" "${IMAGE:=pytorch/pytorch}" "${NAME:=$(basename "$TEACHER")-$RATIO}"
: "${JOB_OPTIONS:=}" "${SHRINK_OPTIONS:=}"

# shellcheck disable=SC2016,SC2086  # variables of the job; options are split on purpose
hf jobs run --detach --flavor "$FLAVOR" --timeout "${HOURS}h" --attempts "$ATTEMPTS" $JOB_OPTIONS \
    --secrets HF_TOKEN --env TEACHER="$TEACHER" --env RATIO="$RATIO" --env NAME="$NAME" \
    --env SECONDS_LEFT="$((3600 * HOURS - 900))" --env SHRINK_OPTIONS="$SHRINK_OPTIONS" --env RUNS=/runs \
    --volume "hf://buckets/$BUCKET:/runs" "$IMAGE" -- \
    sh -c 'pip install --quiet diffcompress && timeout --preserve-status --signal TERM "$SECONDS_LEFT" \
        diffcompress shrink "$TEACHER" --ratio "$RATIO" --output "$RUNS/$NAME" $SHRINK_OPTIONS'
