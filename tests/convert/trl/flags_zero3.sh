#!/bin/bash
MODEL=EleutherAI/pythia-1b-deduped
accelerate launch --config_file configs/zero3.yaml --num_processes 8 \
    examples/scripts/ppo/ppo.py \
    --dataset_name trl-internal-testing/descriptiveness-sentiment-trl-style \
    --dataset_train_split descriptiveness \
    --output_dir models/ppo-descriptive \
    --learning_rate 3e-6 \
    --num_ppo_epochs 1 \
    --num_mini_batches 4 \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 16 \
    --total_episodes 10000 \
    --model_name_or_path $MODEL \
    --sft_model_path ${MODEL} \
    --reward_model_path my-org/pythia-1b-reward \
    --local_rollout_forward_batch_size 4 \
    --missing_eos_penalty 1.0
