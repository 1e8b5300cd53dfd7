#!/bin/bash
# A process per GPU, started by Slurm itself; the job puts itself back into the queue until the run is finished.
#
#     sbatch launch/slurm.sh suite.yaml --model roberta-base --out /shared/runs/mine mixture.sub_batches=256
#
#SBATCH --job-name=prefinetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@300
# The last line asks for SIGUSR1 to this script 300 seconds before the time limit: longer than an update and a checkpoint take.

most_failures=10
arguments=("$@")
out=runs/train
for at in "${!arguments[@]}"; do
  case ${arguments[at]} in
    --out | -o) out=${arguments[at + 1]} ;;
    --out=*) out=${arguments[at]#--out=} ;;
  esac
done

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over from sbatch

# No torchrun in between: what srun starts is the training process, and gets the signals that Slurm sends.
# shellcheck disable=SC2016 # for the inner shell
srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec python -m prefinetune train "$@" --resume' prefinetune "${arguments[@]}" &
step=$!

ending='' cancelled=''
trap 'ending=yes; kill -USR1 $step' USR1 # the time limit is near: srun passes it on, the processes save and stop
trap 'cancelled=yes; kill -TERM $step' TERM # cancelled or preempted: the same, but Slurm knows what comes next

wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends `wait` before its time
  wait "$step"
  status=$?
done

# A run that was told to stop ends with 0 as well, but without a model.
if [ "$status" -eq 0 ] && [ -e "$out/model/config.json" ]; then
  echo "finished: $out"
  exit 0
fi
if [ "$cancelled" ]; then
  exit 1
fi
# 2 is an error in the input, which another try would meet again.
if [ "$ending" ] || { [ "$status" -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_failures" ]; }; then
  echo "not finished (exit code $status): back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
