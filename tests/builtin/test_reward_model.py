"""A reward model's score is a plain forward pass's, whatever stands beside a response in its batch."""

import copy
import math

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    pipeline,
)

from rlframe.api import Prompt
from rlframe.builtin.classifier import Classifier
from rlframe.builtin.reward_input import TruncationWarning
from rlframe.builtin.reward_model import RewardModel, _by_length
from rlframe.data.tokenizer import train_tokenizer
from rlframe.errors import RecipeError
from rlframe.types import ENDS_WITH_TURN
from tests import foreign

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
def run(context):
    """The context of a run with this tokenizer for its policy; `prompts` are those of PPO."""

    def made(tokenizer, *, prompts=(), **given):
        usual = {
            "model_path": lambda name: name,
            "prepare": lambda model: model.eval(),
            "tokenizer_of": lambda name: AutoTokenizer.from_pretrained(name),
            "prompts": lambda: prompts,
            "max_new_tokens": 9,
        }
        return context(tokenizer=tokenizer, **{**usual, **given})

    return made


@pytest.fixture
def inside(run, tokenizer):
    """The context of a run with the policy's tokenizer."""
    return run(tokenizer)


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


@pytest.mark.parametrize(
    ("budget", "batches"),
    [
        (1, [[2], [0], [1], [3], [4]]),
        (10, [[2, 0], [1, 3], [4]]),
        (15, [[2, 0, 1], [3, 4]]),
        (25, [[2, 0, 1, 3, 4]]),
    ],
)
def test_a_forward_pass_has_at_most_its_budget_of_padded_tokens(budget, batches):
    assert _by_length([2, 5, 1, 5, 5], budget) == batches


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
    build, run, tokenizer, saved, sampled
):
    placed = []

    def prepare(model):
        placed.append(model)
        return model

    for dtype in (torch.float32, torch.float64):
        inside = run(tokenizer, prepare=prepare, dtype=dtype)
        build(RewardModel, inside=inside, model=saved).score(sampled)
        assert {p.dtype for p in placed[-1].parameters()} == {dtype}


def test_a_stage_of_the_recipe_is_looked_up_by_the_run(build, run, tokenizer, saved, sampled):
    asked = []

    def model_path(name):
        asked.append(name)
        return saved

    inside = run(tokenizer, model_path=model_path, tokenizer_of=lambda name: tokenizer)
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
    check, reward, other_tokenizer, tmp_path
):
    path = llama(other_tokenizer, tmp_path)
    for refuse in (check, reward):
        with pytest.raises(RecipeError) as caught:
            refuse(path, input="ids")
        message = str(caught.value)
        assert "has another vocabulary than the policy" in message
        assert f"({len(other_tokenizer)} tokens, an embedding of {len(other_tokenizer)})" in message
        assert (
            message.partition("such as ")[2].partition(", have")[0].count("'") == 6
        )  # three of them
        assert message.endswith("Use `input: chat` or `input: text`")
        refuse(path, input="text")  # which is no mistake
        refuse(path)  # which is the same


def test_as_many_tokens_in_another_order_are_other_tokens(check, tokenizer, tmp_path):
    texts = ["the same number of tokens, learned from another text " * 3]
    other = train_tokenizer(texts, vocab_size=270, lowercase=False)
    path = llama(other, tmp_path, vocab_size=len(tokenizer))
    same = copy.deepcopy(other)
    same.add_tokens([f"<extra {i}>" for i in range(len(tokenizer) - len(other))])
    assert len(same) == len(tokenizer)
    same.save_pretrained(path)
    with pytest.raises(RecipeError, match="another vocabulary"):
        check(path, input="ids")


def test_tokens_beyond_the_policys_do_no_harm(check, reward, tokenizer, tmp_path, sampled):
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<one more>"])
    path = llama(more, tmp_path)
    check(path, input="ids")
    expected = [alone(path, [*p, *r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert reward(path).score(sampled) == pytest.approx(expected, rel=1e-5)


def test_an_embedding_smaller_than_the_vocabulary_is_refused(check, tokenizer, tmp_path):
    path = llama(tokenizer, tmp_path, vocab_size=len(tokenizer) - 1)
    with pytest.raises(RecipeError, match=f"embedding of {len(tokenizer) - 1}"):
        check(path, input="ids")


def test_an_embedding_larger_than_the_vocabulary_is_rounded_up_as_usual(check, tokenizer, tmp_path):
    check(llama(tokenizer, tmp_path, vocab_size=len(tokenizer) + 20), input="ids")


def test_a_model_that_is_not_there_is_refused(check, tmp_path):
    with pytest.raises(RecipeError, match=r"there is no folder '.*/nowhere'"):
        check(str(tmp_path / "nowhere"))


def test_a_model_without_a_score_head_cannot_be_given_ids(run, build, other_tokenizer, bert):
    inside = run(other_tokenizer)
    message = r"not a causal model with a score head.*use `input: text`"
    with pytest.raises(RecipeError, match=message):
        build(RewardModel, inside=inside, model=bert, input="ids")
    with pytest.raises(RecipeError, match=message):
        RewardModel.check(RewardModel.Config(model=bert, input="ids"), inside)
    RewardModel.check(RewardModel.Config(model=bert), inside)  # as text it can be asked


@pytest.mark.parametrize("given", ["ids", "text"])
def test_a_language_model_is_no_reward_model(check, language_model, tokenizer, tmp_path, given):
    language_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="reward model"):
        check(str(tmp_path), input=given)


def test_max_tokens_beside_the_sampled_tokens_would_be_read_by_nothing(check, saved):
    with pytest.raises(RecipeError, match="`max_tokens` shortens text"):
        check(saved, max_tokens=10)


@pytest.mark.parametrize("given", ["ids", "chat", "pair"])
def test_append_eos_goes_with_text_alone(check, tmp_path, tokenizer, given):
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(RecipeError, match="`append_eos` goes with"):
        check(llama(chatty, tmp_path), input=given, append_eos=True)


# Lengths


@pytest.mark.parametrize(("prompt", "fits"), [(55, True), (56, False)])
def test_the_longest_prompt_and_response_have_to_fit_into_the_model(
    run, tokenizer, saved, prompt, fits
):
    # The model reads 64 tokens, and a response has up to 9.
    inside = run(tokenizer, prompts=[Prompt("-", (3,) * 5), Prompt("-", (3,) * prompt)])
    config = RewardModel.Config(model=saved)
    if fits:
        RewardModel.check(config, inside)
        return
    with pytest.raises(RecipeError, match="reads 64 tokens, but the longest prompt has 56"):
        RewardModel.check(config, inside)


def test_text_is_cut_at_its_beginning_where_the_recipe_says_so(
    reward, batch, run, other_tokenizer, tmp_path
):
    path = llama(other_tokenizer, tmp_path)
    long = batch(["an answer"], prompts=["very " * 40])
    ids = other_tokenizer.encode("very " * 40 + "an answer")
    expected = alone(path, [ids[0], *ids[-11:]])  # BOS stays
    assert reward(path, max_tokens=12).score(long) == pytest.approx([expected], rel=1e-5)
    inside = run(other_tokenizer)
    with pytest.raises(RecipeError, match=r"max_tokens is 65, but .* reads 64"):
        RewardModel.check(RewardModel.Config(model=path, input="text", max_tokens=65), inside)
    for fewer in (64, 12):
        RewardModel.check(RewardModel.Config(model=path, input="text", max_tokens=fewer), inside)


def test_text_that_is_longer_than_the_model_reads_is_cut_with_a_warning(
    reward, batch, other_tokenizer, tmp_path
):
    path = llama(other_tokenizer, tmp_path)
    with pytest.warns(TruncationWarning, match="longer than the 64"):
        (found,) = reward(path).score(batch(["an answer"], prompts=["very " * 80]))
    ids = other_tokenizer.encode("very " * 80 + "an answer")
    assert found == pytest.approx(alone(path, [ids[0], *ids[-63:]]), rel=1e-5)


# Labels: transformers' own numbers


LABELS = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory):
    """A two-label classifier with a tokenizer of its own, as every tutorial's is."""
    words = foreign.tokenizer("base", seed=5)
    path = tmp_path_factory.mktemp("sentiment")
    shape = {"dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32}
    foreign.saved(path, "base", words=words, kind="distilbert", head="sequence", **shape, **LABELS)
    return str(path)


@pytest.mark.parametrize("label", ["POSITIVE", "positive", 1, "NEGATIVE", 0])
def test_a_probability_is_that_of_transformers_pipeline(reward, batch, sentiment, label):
    classify = pipeline("text-classification", sentiment, top_k=None)
    name = {0: "NEGATIVE", 1: "POSITIVE"}.get(label, str(label).upper())
    expected = [
        next(found["score"] for found in scores if found["label"] == name)
        for scores in classify([f"in short: {text}" for text in TEXTS])
    ]
    asked = batch(TEXTS, prompts=["in short: "] * 5)
    found = reward(sentiment, label=label, output="probability").score(asked)
    assert found == pytest.approx(expected, rel=1e-4)  # the pipeline computes in float32
    logs = reward(sentiment, label=label, output="log_probability").score(asked)
    assert logs == pytest.approx([math.log(p) for p in expected], rel=1e-3, abs=1e-6)


def test_a_logit_is_that_of_a_plain_forward_pass(reward, batch, sentiment):
    model = AutoModelForSequenceClassification.from_pretrained(sentiment, dtype=torch.float64)
    words = AutoTokenizer.from_pretrained(sentiment)
    with torch.no_grad():
        expected = [model(**words(text, return_tensors="pt")).logits[0, 1].item() for text in TEXTS]
    found = reward(sentiment, label="POSITIVE", input="response").score(batch(TEXTS))
    assert found == pytest.approx(expected, rel=1e-5)


def test_labels_that_do_not_exclude_each_other_have_sigmoids(reward, batch, tmp_path):
    kind = {"kind": "llama", "head": "sequence", "num_labels": 3}
    foreign.saved(tmp_path, "base", **kind, problem_type="multi_label_classification")
    asked = batch(TEXTS)
    logits = reward(str(tmp_path), label=2, input="response").score(asked)
    found = reward(str(tmp_path), label=2, input="response", output="probability").score(asked)
    assert found == pytest.approx([1 / (1 + math.exp(-x)) for x in logits], rel=1e-6)


def test_one_output_has_a_sigmoid_too_whatever_its_size(reward, batch, saved, sampled):
    logits = reward(saved).score(sampled)
    logs = reward(saved, output="log_probability").score(sampled)
    assert logs == pytest.approx([-math.log1p(math.exp(-x)) for x in logits], rel=1e-6)


def test_of_one_output_none_has_to_be_named(inside, saved):
    assert Classifier.of(saved, inside).label(None) == 0


def test_of_several_outputs_one_has_to_be_named(check, sentiment):
    with pytest.raises(RecipeError, match=r"2 outputs: 0 \(NEGATIVE\), 1 \(POSITIVE\)") as caught:
        check(sentiment)
    assert str(caught.value).endswith("as in `label: POSITIVE`")
    with pytest.raises(RecipeError, match=r"no label 'POSITVE'\. Did you mean 'POSITIVE'"):
        check(sentiment, label="POSITVE")
    with pytest.raises(RecipeError, match="no label 2"):
        check(sentiment, label=2)


# Two segments


def test_a_pair_classifier_is_given_two_segments(reward, batch, tmp_path):
    words = foreign.tokenizer("base", seed=5)
    words.backend_tokenizer.post_processor = processors.BertProcessing(
        ("<|endoftext|>", words.eos_token_id), ("<|endoftext|>", words.eos_token_id)
    )
    words.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    foreign.saved(tmp_path, "base", words=words, kind="bert", head="sequence", num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    words = AutoTokenizer.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = [model(**words("why?", t, return_tensors="pt")).logits.item() for t in TEXTS]
        swapped = [model(**words(t, "why?", return_tensors="pt")).logits.item() for t in TEXTS]
    found = reward(str(tmp_path), input="pair").score(batch(TEXTS, prompts=["why?"] * 5))
    assert found == pytest.approx(expected, rel=1e-5)
    assert found != pytest.approx(swapped, rel=1e-2)


# A score for each token


def test_a_token_classifier_scores_each_sampled_token(reward, sampled, tokenizer, tmp_path):
    config = {"words": tokenizer, "kind": "llama", "head": "token", "num_labels": 2}
    path = foreign.saved(tmp_path, "base", **config)
    model = AutoModelForTokenClassification.from_pretrained(path, dtype=torch.float64)
    found = reward(str(path), label=1).score(sampled)
    for prompt, response, row in zip(PROMPTS, RESPONSES, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[0, :, 1]
        assert row == pytest.approx(logits[len(prompt) :].tolist(), rel=1e-5)


def test_the_probability_of_a_token_with_one_label_is_a_sigmoid(
    reward, sampled, tokenizer, tmp_path
):
    config = {"words": tokenizer, "kind": "llama", "head": "token", "num_labels": 1}
    path = str(foreign.saved(tmp_path, "base", **config))
    logits = reward(path).score(sampled)
    found = reward(path, output="probability").score(sampled)
    for row, expected in zip(found, logits, strict=True):
        assert row == pytest.approx([1 / (1 + math.exp(-x)) for x in expected], rel=1e-6)


def test_a_token_classifier_with_other_tokens_cannot_be_asked(check, tmp_path):
    path = foreign.saved(tmp_path, "chatml", kind="llama", head="token", num_labels=1)
    with pytest.raises(RecipeError, match="scores each token, so it must read the tokens"):
        check(str(path))


# Chats


QUESTION = ({"role": "user", "content": "Is it any good?"},)


@pytest.fixture
def chat(batch):
    """The texts as answers to a question that the policy's template has rendered in its own way."""
    rendered = "<|im_start|>user\nIs it any good?<|im_end|>\n<|im_start|>assistant\n"
    return batch(TEXTS, prompts=[Prompt(rendered, (1, 2, 3), {}, QUESTION)] * 5)


@pytest.mark.parametrize("family", ["llama3", "chatml", "gemma", "mistral", "zephyr"])
def test_a_chat_is_rendered_with_the_models_own_template(build, run, chat, tmp_path, family):
    path = foreign.saved(tmp_path, family, head="sequence", num_labels=1, seed=3)
    words = AutoTokenizer.from_pretrained(path)
    expected = [
        alone(path, words.apply_chat_template([*QUESTION, answer], return_dict=False))
        for answer in ({"role": "assistant", "content": text} for text in TEXTS)
    ]
    inside = run(foreign.tokenizer("thinking", seed=7))
    model = build(RewardModel, inside=inside, model=str(path))
    assert model.score(chat) == pytest.approx(expected, rel=1e-5)
    assert model.notes() == [
        f"the reward model {path} reads prompt and response in its own chat template"
    ]


@pytest.mark.parametrize("family", ["llama3", "chatml"])
def test_a_chat_that_is_cut_keeps_its_bos_and_its_end(build, run, chat, tmp_path, family):
    path = foreign.saved(tmp_path, family, head="sequence", num_labels=1, seed=3)
    words = AutoTokenizer.from_pretrained(path)
    turns = [*QUESTION, {"role": "assistant", "content": TEXTS[0]}]
    ids = words.apply_chat_template(turns, return_dict=False)
    front = [ids[0]] if words.bos_token_id == ids[0] else []
    assert bool(front) == (family == "llama3")
    inside = run(foreign.tokenizer("thinking", seed=7))
    model = build(RewardModel, inside=inside, model=str(path), input="chat", max_tokens=7)
    expected = alone(path, [*front, *ids[len(ids) - 7 + len(front) :]])
    assert model.score(chat.rows([0])) == pytest.approx([expected], rel=1e-5)


def test_a_plain_prompt_is_a_users_turn_for_a_model_with_a_template(build, run, batch, tmp_path):
    path = foreign.saved(tmp_path, "chatml", head="sequence", num_labels=1)
    asked = {"role": "user", "content": "Is it any good?"}
    words = AutoTokenizer.from_pretrained(path)
    ids = words.apply_chat_template(
        [asked, {"role": "assistant", "content": "no"}], return_dict=False
    )
    model = build(RewardModel, inside=run(foreign.tokenizer("base")), model=str(path))
    found = model.score(batch(["no"], prompts=["Is it any good?"]))
    assert found == pytest.approx([alone(path, ids)], rel=1e-5)


@pytest.mark.parametrize(
    ("family", "behind"),
    [
        ("chatml", "\n"),
        ("llama3", ""),
        ("gemma", "\n"),
        ("zephyr", "\n"),
        ("mistral", ""),
        ("phi3", "\n<|endoftext|>"),
    ],
)
def test_a_model_trained_to_the_end_of_an_answer_reads_to_there(
    build, run, chat, tmp_path, family, behind
):
    path = foreign.saved(tmp_path, family, head="sequence", num_labels=1, **{ENDS_WITH_TURN: True})
    words = AutoTokenizer.from_pretrained(path)
    text = words.apply_chat_template(
        [*QUESTION, {"role": "assistant", "content": TEXTS[1]}], tokenize=False
    )
    assert text.endswith(behind)
    ids = words.encode(text.removesuffix(behind), add_special_tokens=False)
    model = build(RewardModel, inside=run(foreign.tokenizer("thinking", seed=7)), model=str(path))
    assert model.score(chat)[1] == pytest.approx(alone(path, ids), rel=1e-5)


def test_where_the_template_writes_no_end_a_model_reads_to_eos(build, run, batch, tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    words = foreign.tokenizer("base")
    words.chat_template = template
    keys = {"head": "sequence", "num_labels": 1, ENDS_WITH_TURN: True}
    path = foreign.saved(tmp_path, "base", words=words, **keys)
    ids = words.encode("user: Is it?\nassistant: no", add_special_tokens=False)
    model = build(RewardModel, inside=run(foreign.tokenizer("thinking", seed=7)), model=str(path))
    found = model.score(batch(["no"], prompts=["Is it?"]))
    expected = alone(path, [*ids, words.eos_token_id])
    assert found == pytest.approx([expected], rel=1e-5)


def test_the_policys_own_template_and_tokens_are_read_as_they_were_sampled(build, run, tmp_path):
    path = foreign.saved(tmp_path, "chatml", head="sequence", num_labels=1)
    model = build(RewardModel, inside=run(foreign.tokenizer("chatml")), model=str(path))
    assert model.notes() == [f"the reward model {path} reads the tokens that the policy sampled"]


def test_a_model_without_a_template_reads_the_contents_of_a_chat(build, run, chat, tmp_path):
    path = foreign.saved(tmp_path, "base", head="sequence", num_labels=1)
    words = AutoTokenizer.from_pretrained(path)
    expected = [alone(path, words.encode(f"Is it any good?\n{text}")) for text in TEXTS]
    model = build(RewardModel, inside=run(foreign.tokenizer("chatml", seed=7)), model=str(path))
    assert model.score(chat) == pytest.approx(expected, rel=1e-5)


def test_a_template_that_refuses_a_prompt_is_named_before_anything_trains(run, tmp_path):
    path = foreign.saved(tmp_path, "gemma", head="sequence", num_labels=1)
    system = ({"role": "system", "content": "Be brief."}, *QUESTION)
    inside = run(foreign.tokenizer("chatml", seed=7), prompts=[Prompt("-", (1,), {}, system)])
    with pytest.raises(RecipeError, match=r"System role not supported.*'system', 'user'"):
        RewardModel.check(RewardModel.Config(model=str(path)), inside)


def test_chat_without_a_template_is_refused(check, tmp_path):
    path = foreign.saved(tmp_path, "base", head="sequence", num_labels=1)
    with pytest.raises(RecipeError, match="has no chat template; use `input: text`"):
        check(str(path), input="chat")


def test_a_model_that_reads_both_ways_is_given_a_chat_in_its_template(
    reward, chat, bert, other_tokenizer, tmp_path
):
    BertForSequenceClassification.from_pretrained(bert).save_pretrained(tmp_path)
    words = copy.deepcopy(other_tokenizer)
    words.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    words.save_pretrained(tmp_path)
    model = BertForSequenceClassification.from_pretrained(bert, dtype=torch.float64).eval()
    texts = [f"user: Is it any good?\nassistant: {text}\n" for text in TEXTS]
    ids = [words.encode(text, add_special_tokens=False) for text in texts]
    with torch.no_grad():
        expected = [model(torch.tensor([row])).logits.item() for row in ids]
    found = reward(str(tmp_path), input="chat").score(chat)
    assert found == pytest.approx(expected, rel=1e-5)


# BOS and EOS


def test_a_bos_within_a_text_is_text(reward, batch, other_tokenizer, tmp_path):
    words = copy.deepcopy(other_tokenizer)
    words.backend_tokenizer.post_processor = processors.ByteLevel()  # which adds no BOS
    path = llama(words, tmp_path)
    ids = words.encode("so<bos>fine")
    assert ids.index(BOS) == 1
    found = reward(path, input="response").score(batch(["so<bos>fine"]))
    assert found == pytest.approx([alone(path, ids)], rel=1e-5)


@pytest.mark.parametrize("prompt", ["why?", "<bos>why?"])
def test_a_text_has_one_bos_whether_it_brings_one_or_not(
    reward, batch, other_tokenizer, tmp_path, prompt
):
    path = llama(other_tokenizer, tmp_path)
    found = reward(path).score(batch(["so"], prompts=[prompt]))
    assert found == pytest.approx([alone(path, other_tokenizer.encode("why?so"))], rel=1e-5)


def test_a_text_that_is_nothing_but_a_bos_has_one(reward, batch, other_tokenizer, tmp_path):
    """By its tokens: a model gives two equal tokens the score of one."""
    asked = reward(llama(other_tokenizer, tmp_path), input="response")
    assert asked._input._tokenised("<bos>")["input_ids"] == [BOS]


@pytest.mark.parametrize("text", ["so", "so<eos>"])
def test_an_eos_is_appended_once_where_the_recipe_says_so(
    reward, batch, other_tokenizer, tmp_path, text
):
    path = llama(other_tokenizer, tmp_path)
    found = reward(path, append_eos=True).score(batch([text], prompts=["why?"]))
    ids = [*other_tokenizer.encode("why?so"), EOS]
    assert found == pytest.approx([alone(path, ids)], rel=1e-5)
