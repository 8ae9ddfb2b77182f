SAVE=./exp/run1
CKPT_ARGS=(
   --pretrain my-org/base
   --save_path ${SAVE}
)
RL_ARGS=(
   --advantage_estimator gae
   --lambd 1.0
   # --critic_learning_rate 9e-6
   --critic_pretrain my-org/base
   --rollout_batch_size 100
   --train_batch_size 30
)
python3 -m openrlhf.cli.train_ppo_ray ${CKPT_ARGS[@]} ${RL_ARGS[@]} --prompt_data my-org/p \
   --remote_rm_url http://rm:5000/get_reward --use_wandb $WANDB_KEY 2>&1 | tee log.txt
