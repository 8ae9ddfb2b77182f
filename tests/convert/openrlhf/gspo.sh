python3 -m openrlhf.cli.train_ppo_ray --policy_loss_type gspo --eps_clip_low_high 3e-4 4e-4 \
  --advantage_estimator group_norm --n_samples_per_prompt 8 --rollout_batch_size 64 --train_batch_size 256 \
  --pretrain Qwen/Qwen3-4B --reward_pretrain my-org/rm --prompt_data my-org/math --init_kl_coef 0 \
  --prompt_split train_1k --generate_max_len 4096 --attn_implementation flash_attention_2
