"""The mathematics of PPO on language models: pure functions on tensors.

Nothing here knows about ranks, configuration, files or global random state. Shapes are written with
B (responses), T (response tokens, padded), L (tokens of a sequence), N (real tokens, flattened),
V (vocabulary), H (hidden width). `mask` is True on real tokens, everywhere. Results are unreduced:
the engine divides once, by a global count.
"""
