python examples/scripts/ppo/ppo_tldr.py --dataset_name=trl-lib/tldr --dataset_test_split=validation \
    --sft_model_path cleanrl/EleutherAI_pythia-1b-deduped__sft__tldr \
    --reward_model_path cleanrl/EleutherAI_pythia-1b-deduped__reward__tldr \
    --per_device_train_batch_size 16 --gradient_accumulation_steps 4 --total_episodes 1000000 \
    --response_length 53 --stop_token eos --temperature 0.7 --kl_coef 0.05 --seed 7 \
    --eval_strategy steps --eval_steps 100 --push_to_hub > tldr.log 2>&1
