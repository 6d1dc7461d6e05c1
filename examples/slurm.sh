#!/bin/sh
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --time=08:00:00
#SBATCH --signal=B:TERM@120 --requeue --open-mode=append
# Shrink on several machines under Slurm. Two minutes before its time is up, or when it must make room, the job is told to
# stop; it saves, and queues itself again, until the student is there. OUT lies on a disk that all machines see.
#
#   TEACHER=me/flowers RATIO=0.1 OUT=/shared/small sbatch examples/slurm.sh
#
# Exits with 0 when the student is there or the job is queued again, else with torchrun's code: see its output.
set -u

: "${TEACHER:=demo}" "${RATIO:=0.05}" "${OUT:=small}" "${PROCESSES:=gpu}" "${SHRINK_OPTIONS:=}"

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# shellcheck disable=SC2086  # options are split on purpose
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$PROCESSES" \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first:29400" \
    -m diffcompress shrink "$TEACHER" --ratio "$RATIO" --output "$OUT" $SHRINK_OPTIONS &
step=$!
stopping=
trap 'stopping=1; kill -TERM "$step"' TERM
wait "$step"
code=$?
# A signal ends the first `wait` before its process.
while [ -n "$stopping" ] && kill -0 "$step" 2> /dev/null; do
    wait "$step"
    code=$?
done
if [ -n "$stopping" ] && [ "$code" -ne 0 ]; then
    echo "slurm: stopped, queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
