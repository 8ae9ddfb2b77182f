python -m openrlhf.cli.train_ppo_ray --pretrain my-org/sft --reward_pretrain my-org/rm \
  --advantage_estimator rloo --n_samples_per_prompt 4 --rollout_batch_size 256 --train_batch_size 1024 \
  --prompt_data ./prompts.jsonl --input_template $'Question: {}\nAnswer:' --top_p 0.9 --temperature 0.8 \
  --critic_learning_rate 1e-5 --value_clip 0.2 --lambd 0.95 --gamma 0.99 --seed 1 --num_episodes 3
