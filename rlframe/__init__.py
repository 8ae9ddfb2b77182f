"""rlframe: PPO on language models, with rewards, KL controllers and losses as plugins.

Importing the package imports nothing heavy: the command line answers before torch is needed. Plugin
authors write `from rlframe.api import RewardProvider, PluginConfig`; a program that runs recipes
starts at `rlframe.compose`; the algorithm is `rlframe.engine.ppo.train`.
"""

__version__ = "0.1.0"
