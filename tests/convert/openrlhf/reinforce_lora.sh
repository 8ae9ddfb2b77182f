openrlhf_args="--bf16"
deepspeed --include localhost:0,1 --module openrlhf.cli.train_ppo --advantage_estimator reinforce \
  --gamma 0.99 --pretrain ./sft --reward_pretrain ./rm --prompt_data data/prompts.csv \
  --lora_rank 8 --lora_alpha 32 --target_modules q_proj v_proj --lora_dropout 0.1 --load_in_4bit \
  --train_batch_size 64 --rollout_batch_size 64 --entropy_loss_coef 0.01 --freezing_actor_steps 10 \
  --adam_betas 0.9 0.95 --l2 0.01 --max_norm 0.5 --reward_clip_range -5 5 $openrlhf_args
