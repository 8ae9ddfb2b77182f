"""PPO itself. Read `ppo.py` first. Receives finished objects: no recipe, no registry, no files."""
