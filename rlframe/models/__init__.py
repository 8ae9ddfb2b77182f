"""The models: a policy that scores tokens, a critic, and how both are made or loaded."""
