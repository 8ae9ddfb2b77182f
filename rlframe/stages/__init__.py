"""What a recipe's stages run: sft and reward_model on transformers.Trainer, ppo on our own engine."""
