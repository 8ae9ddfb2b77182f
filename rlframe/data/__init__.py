"""Rows from files or the hub, and their split; tokenizers; rows as tokens."""
