# adapters, and a schedule with a ramp
torchrun --nproc_per_node 2 my_ppo.py \
    --dataset_name ./data/prompts.jsonl \
    --dataset_config main \
    --sft_model_path ./sft --reward_model_path ./rm \
    --use_peft True --lora_r 32 --lora_alpha 64 --lora_dropout 0.05 \
    --lora_target_modules q_proj k_proj v_proj o_proj \
    --learning_rate 5e-5 --lr_scheduler_type cosine --warmup_ratio 0.03 \
    --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --total_episodes 3200 \
    --response_length 512 --kl_coef 0.0 --whiten_rewards True --bf16 \
    --save_steps 0.025 --load_in_4bit
