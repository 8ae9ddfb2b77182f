"""What a recipe's stages do: the supervised ones on transformers.Trainer, PPO on our own engine."""
