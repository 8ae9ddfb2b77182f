ray job submit --address="http://127.0.0.1:8265" -- python3 -m openrlhf.cli.train_ppo_ray \
   --actor.model_name_or_path Qwen/Qwen3-4B --reward.remote_url examples/python/math_reward_func.py \
   --data.prompt_dataset zhuzilin/dapo-math-17k --data.input_key prompt --data.label_key label \
   --data.apply_chat_template --ds.packing_samples --ref.num_nodes 1 --ref.num_gpus_per_node 4 \
   --actor.num_nodes 1 --actor.num_gpus_per_node 4 --vllm.num_engines 2 --vllm.tensor_parallel_size 2 \
   --train.colocate_all --vllm.enable_sleep --ds.enable_sleep --algo.advantage.estimator dr_grpo \
   --algo.kl.use_loss --algo.kl.estimator k2 --algo.kl.init_coef 1e-5 --rollout.batch_size 128 \
   --rollout.n_samples_per_prompt 8 --train.batch_size 1024 --data.max_len 8192 --data.max_samples 128000 \
   --rollout.max_new_tokens 4096 --ds.zero_stage 3 --ds.param_dtype bf16 --actor.adam.lr 5e-7 \
   --actor.gradient_checkpointing_enable --ckpt.output_dir ./exp/Qwen3-4B
