set -e
ARGS=(
  --dataset_name my-org/prompts      # prompts alone
  --sft_model_path my-org/sft
  --reward_model_path my-org/rm
  # --total_episodes 5
  --total_episodes 2048
)
accelerate launch --num_processes=4 train_ppo.py "${ARGS[@]}" --per_device_train_batch_size 4 \
  --learning_rate 1e-6 --learning_rate 2e-6 --kl_estimator k3
