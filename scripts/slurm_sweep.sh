#!/usr/bin/env bash
# A sweep, or experiments, as an array of Slurm jobs: task I of N makes every N-th run, starting with the I-th.
#
#   sbatch --array=1-8 scripts/slurm_sweep.sh sweep rates.toml
#   sbatch --array=1-8 scripts/slurm_sweep.sh experiment norms --scale full
#
# Arguments are those of `evenkeel`. Submitted without --array it makes whatever is missing and writes the report.
# SHARDS is the number of parts if it is not that of the tasks: SHARDS=8 with --array=3,5 makes two of eight.
# docs/cluster.md says more. What is below is ours: set partition, account, memory and time to yours.

#SBATCH --job-name=evenkeel
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
# The batch shell, and nothing else, is told two minutes before the time is over.
#SBATCH --signal=B:USR1@120
# After a node has failed, or a job of higher priority came, the task starts again.
#SBATCH --requeue

set -u

shard="${SLURM_ARRAY_TASK_ID:-1}/${SHARDS:-${SLURM_ARRAY_TASK_COUNT:-1}}"
evenkeel "$@" --shard "$shard" --threads "${SLURM_CPUS_PER_TASK:-1}" --no-progress &
run=$!

again= signalled=
# Out of time: every run ends after its step, with a checkpoint, and the task is queued again.
trap 'again=yes signalled=yes; kill -TERM "$run"' USR1
# Cancelled: Slurm has told the program as well, so that there is only its end to wait for.
trap 'signalled=yes' TERM

# A signal ends `wait` before the program has ended.
while :; do
    signalled='' code=0
    wait "$run" || code=$?
    [ -n "$signalled" ] || break
done

if [ -n "$again" ] && [ "$code" -eq 130 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
