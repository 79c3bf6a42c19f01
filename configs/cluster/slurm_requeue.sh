#!/usr/bin/env bash
# Three stages under Slurm, through any number of preemptions: sbatch configs/cluster/slurm_requeue.sh [key=value ...]
#
# Ten minutes before the limit Slurm signals this script alone (B:), not the ranks. ziya-train then lets the running step end,
# saves, and ends with 138 (SIGUSR1) or 143 (SIGTERM): the job is queued again, and the same command goes on. Other codes are
# errors that a second try would meet again. Stages that are finished end at once with 0.
#SBATCH --job-name=ziya
#SBATCH --nodes=10
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

CONFIG=${CONFIG:-configs/train/ziya2_13b.yaml}
HOSTS=${HOSTS:-hostfile-$SLURM_JOB_ID}
SLOTS=${SLOTS:-8}
scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/$/ slots=$SLOTS/" >"$HOSTS"

signal=
interrupted=
pid=
pass_on() {
    signal=$1
    interrupted=yes
    [ -n "$pid" ] && kill "-$1" "$pid" 2>/dev/null
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

code=0
for stage in 1 2 3; do
    [ -n "$signal" ] && break
    ziya-train --stage "$stage" --config "$CONFIG" "launch.hostfile=$HOSTS" "$@" &
    pid=$!
    while :; do # a signal ends `wait` while ziya-train is still saving
        interrupted=
        wait "$pid"
        now=$?
        [ "$now" -eq 127 ] || code=$now # 127: it was waited for already
        [ -n "$interrupted" ] || break
    done
    [ "$code" -eq 0 ] || break
done
rm -f "$HOSTS"

if [ -n "$signal" ] || [ "$code" -eq 138 ] || [ "$code" -eq 143 ]; then
    case $code in
    0 | 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
    esac
fi
exit "$code"
