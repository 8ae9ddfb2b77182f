read -r -d '' training_commands <<EOF
openrlhf.cli.train_ppo \
   --pretrain OpenRLHF/Llama-2-7b-sft-model-ocra-500k \
   --reward_pretrain OpenRLHF/Llama-2-7b-rm-anthropic_hh-lmsys-oasst-webgpt \
   --save_path ./ckpt/7b_llama \
   --save_steps -1 \
   --logging_steps 1 \
   --eval_steps -1 \
   --micro_train_batch_size 2 \
   --train_batch_size 128 \
   --micro_rollout_batch_size 4 \
   --rollout_batch_size 512 \
   --max_epochs 2 \
   --prompt_max_len 512 \
   --generate_max_len 512 \
   --zero_stage 2 \
   --bf16 \
   --actor_learning_rate 5e-7 \
   --critic_learning_rate 9e-6 \
   --init_kl_coef 0.01 \
   --kl_target 0.1 \
   --kl_horizon 5000 \
   --prompt_data Open-Orca/OpenOrca,Dahoas/full-hh-rlhf \
   --prompt_data_probs 0.4,0.6 \
   --pretrain_data OpenRLHF/webgpt-text \
   --ptx_coef 0.1 \
   --max_samples 80000 \
   --value_clip 0.2 \
   --lambd 0.95 \
   --enable_ema
EOF

if [[ ${1} != "slurm" ]]; then
    deepspeed --module $training_commands
fi
