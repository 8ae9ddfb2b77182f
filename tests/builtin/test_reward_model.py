"""A reward model's score is a plain forward pass's, whatever stands beside a response in its batch."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from rlframe.builtin.reward_model import RewardModel
from rlframe.data.tokenizer import train_tokenizer
from rlframe.errors import RecipeError
from rlframe.hooks import Prompt

PAD, BOS, EOS = 0, 1, 2
# Prompts of 1 to 3 tokens, responses of 1 to 9: together 2 to 11.
PROMPTS = [(BOS,), (BOS, 30), (BOS, 40, 41), (BOS, 50), (BOS, 60, 61)]
RESPONSES = [[7], [8, 9, 10, EOS], [11] * 8, [12, 13, EOS], [14, 15, 16, 17, 18, 19, 20, 21, EOS]]
TEXTS = [
    "fine",
    "it is not so fine at all",
    "bad",
    "the battery is fine",
    "so bad that I cry, twice",
]


def llama(tokenizer, path, *, kind=LlamaForSequenceClassification, **shape):
    """Save a tiny Llama with random weights, wide enough that scores differ, and its tokenizer."""
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": tokenizer.pad_token_id,
            "num_labels": 1,
            "initializer_range": 0.5,
            **shape,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).to(torch.float64).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """The path of a reward model with the policy's own tokenizer."""
    return llama(tokenizer, tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def other_tokenizer():
    """One with other tokens, as a classifier from elsewhere has."""
    texts = ["quite another text, about cooking", *TEXTS]
    return train_tokenizer(texts, vocab_size=270, lowercase=True)


@pytest.fixture
def inside(context, tokenizer):
    """The context of a run with the policy's tokenizer."""
    return context(tokenizer=tokenizer, model_path=lambda name: name, prepare=lambda model: model)


@pytest.fixture
def reward(build, inside):
    return lambda path, **keys: build(RewardModel, inside=inside, model=path, **keys)


@pytest.fixture
def sampled(batch):
    """The responses above to the prompts above."""
    prompts = [Prompt(f"prompt {i}", ids) for i, ids in enumerate(PROMPTS)]
    return batch(["-"] * 5, ids=RESPONSES, prompts=prompts)


def alone(path, ids, kind=LlamaForSequenceClassification):
    """The score at the last token of one sequence, with nothing beside it."""
    model = kind.from_pretrained(path, dtype=torch.float64).eval()
    with torch.no_grad():
        hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
        return model.score(hidden[0, -1]).item()


def test_the_score_is_that_of_a_forward_pass_at_the_last_token(reward, sampled, saved):
    expected = [alone(saved, [*p, *r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert len({round(score, 2) for score in expected}) == 5  # they can be told apart
    assert reward(saved).score(sampled) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 11, 30, 10_000])
def test_the_score_does_not_depend_on_the_size_of_a_forward_pass(
    reward, sampled, saved, batch_tokens
):
    found = reward(saved, batch_tokens=batch_tokens).score(sampled)
    assert found == pytest.approx(reward(saved).score(sampled), rel=1e-5)


@pytest.mark.parametrize("rows", [[4, 3, 2, 1, 0], [2], [1, 1, 4], [0, 4]])
def test_the_score_does_not_depend_on_the_responses_beside_it(reward, sampled, saved, rows):
    model = reward(saved)
    together = model.score(sampled)
    assert model.score(sampled.rows(rows)) == pytest.approx([together[i] for i in rows], rel=1e-5)


@pytest.mark.parametrize("response", [[7, 8, PAD], [PAD], [7, PAD, 9], [7, PAD, PAD, PAD]], ids=str)
def test_a_padding_token_that_was_sampled_is_a_token_like_any_other(reward, batch, saved, response):
    # transformers looks for the last token that is not padding, and finds an earlier one.
    prompts = [Prompt("-", (BOS, 30)), Prompt("-", (BOS, 30))]
    both = batch(["-", "-"], ids=[response, [5] * 9], prompts=prompts)
    found, _ = reward(saved).score(both)
    assert found == pytest.approx(alone(saved, [BOS, 30, *response]), rel=1e-5)


def test_scoring_twice_gives_the_same(reward, sampled, saved):
    model = reward(saved)
    assert model.score(sampled) == model.score(sampled)


def test_the_models_weights_are_asked_for_in_the_runs_precision_and_placed_by_the_run(
    build, context, tokenizer, saved, sampled
):
    placed = []

    def prepare(model):
        placed.append(model)
        return model

    for dtype in (torch.float32, torch.float64):
        inside = context(
            tokenizer=tokenizer, model_path=lambda name: name, prepare=prepare, dtype=dtype
        )
        build(RewardModel, inside=inside, model=saved).score(sampled)
        assert {p.dtype for p in placed[-1].parameters()} == {dtype}


def test_a_stage_of_the_recipe_is_looked_up_by_the_run(build, context, tokenizer, saved, sampled):
    asked = []

    def model_path(name):
        asked.append(name)
        return saved

    inside = context(tokenizer=tokenizer, model_path=model_path, prepare=lambda model: model)
    own = build(RewardModel, inside=inside)  # `stage:reward_model` if nothing is said
    assert asked == ["stage:reward_model"]
    assert len(own.score(sampled)) == 5


# Text for a model with other tokens


def judged(reward, batch, path, **keys):
    """(scores of the texts together, scores of each alone by plain forward passes)."""
    texts = batch(TEXTS, prompts=["in short: "] * 5)
    return reward(path, input="text", **keys).score(texts)


def on_its_own(tokenizer, path):
    return [alone(path, tokenizer.encode("in short: " + text)) for text in TEXTS]


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_as_text_the_models_own_tokenizer_reads_prompt_and_response(
    reward, batch, other_tokenizer, tmp_path, batch_tokens
):
    path = llama(other_tokenizer, tmp_path)
    expected = on_its_own(other_tokenizer, path)
    assert len({round(score, 2) for score in expected}) == 5
    found = judged(reward, batch, path, batch_tokens=batch_tokens)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("pad", [EOS, None])
def test_as_text_the_score_is_the_same_whatever_the_models_padding_token(
    reward, batch, other_tokenizer, tmp_path, pad
):
    path = llama(other_tokenizer, tmp_path, pad_token_id=pad)
    expected = on_its_own(other_tokenizer, path)
    assert judged(reward, batch, path) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def bert(other_tokenizer, tmp_path_factory):
    """The path of a classifier that reads a text in both directions."""
    path = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(other_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).to(torch.float64).save_pretrained(path)
    other_tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_as_text_a_model_that_reads_both_ways_does_not_read_the_padding(
    reward, batch, other_tokenizer, bert, batch_tokens
):
    model = BertForSequenceClassification.from_pretrained(bert, dtype=torch.float64).eval()
    with torch.no_grad():
        expected = [
            model(torch.tensor([other_tokenizer.encode("in short: " + text)])).logits.item()
            for text in TEXTS
        ]
    assert len({round(score, 2) for score in expected}) == 5
    found = judged(reward, batch, bert, batch_tokens=batch_tokens)
    assert found == pytest.approx(expected, rel=1e-5)


# What is refused


@pytest.fixture
def check(inside):
    """The check before a run, of a model with these keys."""
    return lambda path, **keys: RewardModel.check(RewardModel.Config(model=path, **keys), inside)


def test_a_model_with_the_policys_tokens_passes_the_check(check, saved):
    check(saved)


def test_a_model_with_other_tokens_is_refused_with_the_way_out(
    check, reward, other_tokenizer, tokenizer, tmp_path
):
    path = llama(other_tokenizer, tmp_path)
    for refuse in (check, reward):
        with pytest.raises(RecipeError) as caught:
            refuse(path)
        told = str(caught.value)
        assert "has another vocabulary than the policy" in told
        assert f"({len(other_tokenizer)} tokens" in told
        assert f"the policy's tokenizer has {len(tokenizer)}" in told
        assert told.endswith("Use `input: text`")
        refuse(path, input="text")  # which is no mistake


def test_as_many_tokens_in_another_order_are_other_tokens(check, tokenizer, tmp_path):
    texts = ["the same number of tokens, learned from another text " * 3]
    other = train_tokenizer(texts, vocab_size=270, lowercase=False)
    path = llama(other, tmp_path)
    same = copy.deepcopy(other)
    same.add_tokens([f"<extra {i}>" for i in range(len(tokenizer) - len(other))])
    assert len(same) == len(tokenizer)
    same.save_pretrained(path)
    with pytest.raises(RecipeError, match="entries differ"):
        check(path)


def test_an_embedding_smaller_than_the_vocabulary_is_refused(check, tokenizer, tmp_path):
    path = llama(tokenizer, tmp_path, vocab_size=len(tokenizer) - 1)
    with pytest.raises(RecipeError, match=f"embedding of {len(tokenizer) - 1}"):
        check(path)


def test_an_embedding_larger_than_the_vocabulary_is_rounded_up_as_usual(check, tokenizer, tmp_path):
    check(llama(tokenizer, tmp_path, vocab_size=len(tokenizer) + 20))


def test_a_model_that_is_not_there_is_refused(check, tmp_path):
    with pytest.raises(RecipeError, match="can not be opened") as caught:
        check(str(tmp_path / "nowhere"))
    assert "nowhere" in str(caught.value)


def test_a_model_without_a_score_head_can_not_be_given_ids(
    reward, other_tokenizer, bert, context, build
):
    inside = context(
        tokenizer=other_tokenizer, model_path=lambda name: name, prepare=lambda model: model
    )
    with pytest.raises(
        RecipeError, match="not a causal model with a score head; use `input: text`"
    ):
        build(RewardModel, inside=inside, model=bert)


def test_a_model_without_a_score_head_is_refused_before_anything_trains(
    context, other_tokenizer, bert
):
    inside = context(tokenizer=other_tokenizer, model_path=lambda name: name)
    with pytest.raises(RecipeError, match="use `input: text`"):
        RewardModel.check(RewardModel.Config(model=bert), inside)


@pytest.mark.parametrize("given", ["ids", "text"])
def test_a_language_model_is_no_reward_model(check, language_model, tokenizer, tmp_path, given):
    language_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="reward model"):
        check(str(tmp_path), input=given)


def test_a_classifier_with_two_labels_is_refused_with_their_number(check, tokenizer, tmp_path):
    path = llama(tokenizer, tmp_path, num_labels=2)
    with pytest.raises(RecipeError, match="2 "):
        check(path)
