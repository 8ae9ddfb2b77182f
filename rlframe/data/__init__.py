"""Rows from files, the hub or a grammar; tokenizers; rows as tokens."""
