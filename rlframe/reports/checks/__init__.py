"""The checks of `rlframe doctor`, by subject: each takes a `History` and returns a finding or None.

Each threshold says where it comes from. "Quickstart" is a healthy run of recipes/quickstart.yaml: 30
updates of 64 responses, approximate KL at most 0.05, clip fraction at most 0.09, ratio within 0.02 of
1, KL 5 nats per response and 0.25 per token at the end. "Practice" is what users of PPO on language
models expect of these metrics; docs/metrics.md has the same values.
"""
