import sys
from typing import NamedTuple

import pytest

from rlframe.cli.main import main

TINY = """\
version: 1
data:
  reviews: {generator: {type: product_reviews, rows: 200}, heldout: 0.1}
model:
  policy:
    architecture:
      model_type: llama
      hidden_size: 16
      intermediate_size: 32
      num_hidden_layers: 1
      num_attention_heads: 2
      max_position_embeddings: 64
    tokenizer: {data: reviews, vocab_size: 300}
sft: {data: reviews, epochs: 0.1, max_tokens: 64}
prompts: {data: reviews, first_words: 3}
rollout: {prompts_per_update: 4, max_new_tokens: 8}
rewards:
  brevity: {type: length, target_tokens: 4}
kl:
  controller: {type: fixed, coefficient: 0.1}
ppo: {updates: 1, epochs: 1}
evaluation: {prompts: 4}
runtime: {device: cpu, threads: 1}
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def rlframe(monkeypatch, capsys):
    """Run `rlframe` with these arguments in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlframe", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ending:
            code = ending.code or 0
        else:
            code = 0
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def recipe(tmp_path):
    """The path of a recipe with two stages that a second or two is enough for."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path
