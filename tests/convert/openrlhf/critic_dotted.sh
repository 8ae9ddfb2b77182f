python3 -m openrlhf.cli.train_ppo_ray \
   --actor.model_name_or_path my-org/sft --reward.model_name_or_path my-org/rm \
   --critic.model_name_or_path my-org/critic --critic.adam.lr 1e-5 --critic.value_clip 0.3 \
   --data.prompt_dataset my-org/prompts --rollout.batch_size 64 --train.batch_size 32 --train.max_epochs 2 \
   --algo.kl.target 0.05 --actor.dual_clip 3.0 --actor.lr_scheduler constant --ckpt.save_steps 10 \
   --reward.clip_range -10 10 --ref.offload --train.enable_ema --train.ema_beta 0.99
