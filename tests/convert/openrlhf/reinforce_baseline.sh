python3 -m openrlhf.cli.train_ppo_ray \
   --advantage_estimator reinforce_baseline --n_samples_per_prompt 16 --rollout_batch_size 512 \
   --train_batch_size 1024 --init_kl_coef 1e-4 --use_kl_loss --kl_estimator k2 \
   --eps_clip_low_high 0.2 0.27 --dynamic_filtering --dynamic_filtering_reward_range 0 1 \
   --pretrain deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --remote_rm_url http://localhost:5000/get_reward \
   --prompt_data my-org/dapo-math-17k --input_key prompt --label_key label --apply_chat_template \
   --generate_max_len 8192 --prompt_max_len 1024 --num_episodes 100 --save_steps 5 --max_ckpt_num 4 \
   --use_dynamic_batch --train_max_tokens_per_gpu 32768 --enable_vllm_is_correction \
   --vllm_is_truncated_threshold 0.5 5.0 --use_icepop --stop_properly_penalty_coef 0.0 \
   --eval_dataset my-org/aime-2024 --eval_steps 5 --param_dtype bf16
