WORK=/root/work
python3 -m openrlhf.cli.train_ppo_ray \
   --actor_num_nodes 1 --actor_num_gpus_per_node 8 --ref_num_nodes 1 --ref_num_gpus_per_node 8 \
   --vllm_num_engines 8 --colocate_all_models --vllm_gpu_memory_utilization 0.6 --vllm_enable_sleep \
   --advantage_estimator group_norm --use_kl_loss --kl_estimator k3 --init_kl_coef 1e-3 --gamma 1.0 \
   --pretrain Qwen/Qwen2.5-7B-Instruct --remote_rm_url ${WORK}/reward_func.py \
   --prompt_data json@${WORK}/data.jsonl --input_key question --label_key answer --apply_chat_template \
   --train_batch_size 128 --rollout_batch_size 128 --n_samples_per_prompt 8 --max_samples 12800 \
   --num_episodes 2 --generate_max_len 3000 --zero_stage 3 --param_dtype bf16 --lr_warmup_ratio 0.1
