import dataclasses
from types import SimpleNamespace

import pytest
import torch

from rlframe.api import Context, Prompt, RewardBatch, StopReason, TokenExample
from rlframe.models.pretrained import Pretrained


class Words:
    """A tokenizer of words, numbered as they come: a text of n words has n tokens."""

    eos_token_id = 0

    def __init__(self):
        self.known = {}

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens
        return [self.known.setdefault(word, 1 + len(self.known)) for word in text.split()]


def make_batch(texts, *, ids=None, stops=None, prompts=None, groups=None, columns=None, **more):
    """A RewardBatch of these responses; a response of n words has n tokens and ended by itself.

    Args:
      texts: the responses.
      ids: their tokens; their lengths are enough.
      stops: why each ended.
      prompts: one a response, texts or `Prompt`s.
      groups: which responses share a prompt; each has its own if left out.
      columns: name -> one entry a response.
      more: any other field.
    """
    count = range(len(texts))
    ids = ids or [len(text.split()) for text in texts]
    rows = [{name: values[i] for name, values in (columns or {}).items()} for i in count]
    asked = prompts or [f"prompt {i}" for i in count]
    return RewardBatch(
        prompts=[
            p if isinstance(p, Prompt) else Prompt(p, (1,), rows[i]) for i, p in enumerate(asked)
        ],
        response_texts=texts,
        response_ids=[list(range(3, 3 + n)) if isinstance(n, int) else n for n in ids],
        stop_reasons=stops or [StopReason.EOS for _ in count],
        group_ids=groups or list(count),
        update=0,
        generator=torch.Generator().manual_seed(0),
        **more,
    )


@pytest.fixture
def batch():
    return make_batch


@pytest.fixture
def context():
    """What a component is built with; anything not given is None."""

    def made(**given):
        nothing = {field.name: None for field in dataclasses.fields(Context)}
        words = Words()

        def tokenize(row):
            response = words.encode(row["response"], add_special_tokens=False)
            return TokenExample((1, *response, words.eos_token_id), 1)

        usual = {"device": torch.device("cpu"), "dtype": torch.float64, "tokenizer": words}
        path = given.get("model_path", str)
        usual |= {"pretrained": lambda name: Pretrained(path(name)), "tokenize": tokenize}
        return Context(**{**nothing, **usual, **given})

    return made


@pytest.fixture
def build(context):
    """Build a component from the keys that a recipe would have."""

    def built(component, *, inside=None, **keys):
        return component(component.Config.model_validate(keys), inside or context())

    return built


@pytest.fixture
def policy():
    """A policy that finds every token `id` with log-probability -id, so that sums are read at sight."""
    return SimpleNamespace(logprobs=lambda tokens, mask: -tokens[:, 1:].double())
