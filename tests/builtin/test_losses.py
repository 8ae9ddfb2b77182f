"""Auxiliary losses: which tokens count, with a policy whose log-probabilities are read at sight."""

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from rlframe.api import Needs, TokenBatch, TokenExample
from rlframe.builtin.losses import PTX, SFT, EntropyBonus, PTXConfig, SFTConfig
from rlframe.engine.streams import token_batch
from rlframe.errors import RecipeError
from rlframe.functional.losses import smoothed
from rlframe.models.policy import Policy
from rlframe.models.vocabulary import Vocabulary
from rlframe.testing.world import tiny_policy

# Two demonstrations: (prompt), response. Token 1 stands first, 2 ends.
EXAMPLES = {
    "first": TokenExample((1, 30, 5, 7, 2), 2),  # response 5 7 2
    "second": TokenExample((1, 40, 50, 9, 2), 3),  # response 9 2
    "text": TokenExample((1, 11, 2), 0),  # no prompt
    "two": TokenExample((1, 30, 5, 2, 40, 7, 2), 2, ((2, 4), (5, 7))),  # responses 5 2 and 7 2
    "silent": TokenExample((1, 30), 2),  # a prompt without a response
    "long": TokenExample(tuple(range(1, 13)), 12),  # the same
    "empty": TokenExample((2,), 0),  # a text of no words, by a tokenizer without BOS
}
KEYS = {SFT: {"data": "some"}, PTX: {"data": "some", "gamma": 0.5}}


@pytest.fixture
def loss(build, context):
    """A loss on the named examples; its data set is called "some"."""

    def made(component, *names, **keys):
        def training_rows(data):
            if data != "some":
                raise RecipeError(f"there is no data set {data!r}")
            return names

        inside = context(training_rows=training_rows, tokenize=EXAMPLES.__getitem__)
        return build(component, inside=inside, **{**KEYS[component], **keys})

    return made


def terms(loss, policy):
    """The loss's own examples as the engine batches them: (sum, count)."""
    batch = token_batch(loss.examples(), device=torch.device("cpu"))
    term = loss.loss(policy, batch)
    assert loss.count(batch) == term.count
    return term.total.item(), term.count.item()


def test_sft_counts_the_tokens_of_the_responses_alone(loss, policy):
    assert terms(loss(SFT, "first"), policy) == (5 + 7 + 2, 3)
    assert terms(loss(SFT, "first", "second"), policy) == (5 + 7 + 2 + 9 + 2, 5)


def test_sft_counts_every_answer_of_a_conversation_or_the_last_one(loss, policy):
    assert terms(loss(SFT, "two"), policy) == (5 + 2 + 7 + 2, 4)
    assert terms(loss(SFT, "two", learn="last"), policy) == (7 + 2, 2)
    assert terms(loss(SFT, "first", learn="last"), policy) == terms(loss(SFT, "first"), policy)
    assert terms(loss(PTX, "two"), policy) == (30 + 5 + 2 + 40 + 7 + 2, 6)


def test_ptx_counts_all_tokens_but_the_first_whether_there_is_a_prompt_or_not(loss, policy):
    assert terms(loss(PTX, "text"), policy) == (11 + 2, 2)
    assert terms(loss(PTX, "first", "text"), policy) == (30 + 5 + 7 + 2 + 11 + 2, 6)


@pytest.mark.parametrize("component", [SFT, PTX])
def test_what_is_masked_is_not_read(loss, component):
    # Padding may have any log-probability, that of a token which cannot be sampled too.
    logprobs = torch.tensor([[-1.0, -torch.inf, -2.0], [torch.nan, -4.0, torch.nan]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    policy = SimpleNamespace(logprobs=lambda tokens, mask: logprobs)
    term = loss(component).loss(policy, TokenBatch(torch.zeros(2, 4, dtype=torch.long), mask))
    assert (term.total.item(), term.count.item()) == (7.0, 3)


@pytest.mark.parametrize("component", [SFT, PTX])
def test_the_gradient_reaches_the_tokens_that_count_and_no_others(loss, component):
    logprobs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    policy = SimpleNamespace(logprobs=lambda tokens, mask: logprobs)
    mask = torch.tensor([[False, True, True]])
    term = loss(component).loss(policy, TokenBatch(torch.zeros(1, 4, dtype=torch.long), mask))
    term.total.backward()
    assert logprobs.grad.tolist() == [[0, -1, -1]]


@pytest.mark.parametrize("component", [SFT, PTX])
def test_the_parts_of_a_batch_add_up_to_the_whole(loss, policy, component):
    own = loss(component, "first", "second")
    whole = terms(own, policy)
    parts = [terms(loss(component, name), policy) for name in ("first", "second")]
    assert whole == tuple(map(sum, zip(*parts, strict=True)))


def test_the_coefficient_of_sft_is_1_unless_the_recipe_says_otherwise(loss):
    assert loss(SFT).coefficient == 1
    assert loss(SFT, coefficient=0.25).coefficient == 0.25


def test_the_coefficient_of_ptx_is_gamma(loss):
    assert loss(PTX, gamma=0.25).coefficient == 0.25


@pytest.mark.parametrize("component", [SFT, PTX])
def test_the_number_of_examples_a_step_is_the_recipes(loss, component):
    assert loss(component).examples_per_step == 16
    for some in (1, 3):
        assert loss(component, examples_per_step=some).examples_per_step == some


@pytest.mark.parametrize(
    ("component", "keys"),
    [
        (SFT, {"data": "some", "coefficient": -1}),
        (SFT, {}),
        (SFT, {"data": "some", "examples_per_step": 0}),
        (PTX, {"data": "some"}),
        (PTX, {"data": "some", "gamma": -0.1}),
        (PTX, {"gamma": 0.1}),
        (SFT, {"data": "some", "label_smoothing": -0.1}),
        (SFT, {"data": "some", "label_smoothing": 1}),
        (PTX, {"data": "some", "gamma": 1, "label_smoothing": float("nan")}),
        (EntropyBonus, {"coefficient": -0.1}),
        (EntropyBonus, {"data": "some"}),
    ],
)
def test_a_coefficient_is_not_negative_and_the_data_has_a_name(component, keys):
    with pytest.raises(ValidationError):
        component.Config.model_validate(keys)


def test_the_recipe_knows_what_the_data_has_to_hold_before_anything_is_built():
    assert SFT.needs(SFT.Config(data="some")) == Needs(demonstrations=frozenset({"some"}))
    assert PTX.needs(PTX.Config(data="some", gamma=1)) == Needs(texts=frozenset({"some"}))


def test_sft_refuses_rows_without_a_prompt_and_points_to_ptx(loss):
    with pytest.raises(RecipeError, match=r"'some' has rows without a prompt.*`type: ptx`"):
        loss(SFT, "first", "text").examples()


def test_sft_refuses_rows_without_a_prompt_before_anything_trains(loss):
    own = loss(SFT, "first", "text")
    with pytest.raises(RecipeError, match="has rows without a prompt"):
        SFT.check(own.config, own.context)


@pytest.mark.parametrize("component", [SFT, PTX])
def test_a_data_set_that_is_not_there_is_refused_before_anything_trains(loss, component):
    own = loss(component, data="other")
    with pytest.raises(RecipeError, match="there is no data set 'other'"):
        component.check(own.config, own.context)


@pytest.mark.parametrize(
    ("component", "names", "message"),
    [
        (SFT, ("first", "silent"), r"1 of 2 examples of data set 'some' .* with ids \[1, 30\]"),
        (SFT, ("long",), r"with ids \[1, 2, 3, 4, 5, 6, 7, 8\]: an empty text"),
        (PTX, ("text", "empty"), "1 of 2 examples of data set 'some' have no token to learn"),
    ],
)
def test_examples_without_a_token_to_learn_are_told_before_anything_trains(
    loss, component, names, message
):
    own = loss(component, *names)
    with pytest.raises(RecipeError, match=message):
        component.check(own.config, own.context)
    with pytest.raises(RecipeError, match=message):
        own.examples()


@pytest.mark.parametrize("config", [SFTConfig, PTXConfig])
def test_a_step_takes_at_most_a_million_examples(config):
    given = {"data": "x", "gamma": 1.0} if config is PTXConfig else {"data": "x"}
    assert config(**given, examples_per_step=1_000_000).examples_per_step == 1_000_000
    for number in (0, 1_000_001):
        with pytest.raises(ValidationError):
            config(**given, examples_per_step=number)


# Label smoothing


@pytest.mark.parametrize(
    ("target", "epsilon", "of_four", "of_three"),
    [
        # -log p of the target is 1, 2 or 3, in units of log 2, and its mean 9/4 or 5/3.
        (0, 0.0, 1, 1),
        (1, 0.0, 2, 2),
        (0, 0.2, 0.8 + 0.45, 0.8 + 1 / 3),
        (1, 0.2, 1.6 + 0.45, 1.6 + 1 / 3),
        (1, 0.9, 0.2 + 2.025, 0.2 + 1.5),
    ],
)
def test_a_smoothed_target_by_hand(target, epsilon, of_four, of_three):
    for bits, real, expected in (
        ([1.0, 2.0, 3.0, 3.0], [True, True, True, True], of_four),
        ([1.0, 2.0, 1e4, 2.0], [True, True, False, True], of_three),
    ):
        found = smoothed(
            -torch.tensor([bits]).double() * math.log(2),
            torch.tensor([target]),
            epsilon=epsilon,
            has_token=torch.tensor(real),
        )
        assert -found.item() / math.log(2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("component", [SFT, PTX])
def test_a_smoothed_loss_is_the_cross_entropy_of_torch_with_its_gradient(loss, component):
    policy = tiny_policy()
    own = loss(component, "first", "second", "two", label_smoothing=0.3)
    batch = token_batch(own.examples(), device=torch.device("cpu"))
    term = own.loss(policy, batch)
    expected = torch.nn.functional.cross_entropy(
        policy.model(batch.tokens[:, :-1]).logits[batch.mask],
        batch.tokens[:, 1:][batch.mask],
        label_smoothing=0.3,
        reduction="sum",
    )
    weights = list(policy.parameters())
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert term.count == batch.mask.sum() == own.count(batch)
    torch.testing.assert_close(
        torch.autograd.grad(term.total, weights), torch.autograd.grad(expected, weights)
    )


def test_a_target_is_not_spread_over_ids_without_a_token(loss):
    whole = tiny_policy()
    holes = Vocabulary(290, (3, 17))
    policy = Policy(whole.model, temperature=1, chunk=4, vocabulary=holes)
    own = loss(SFT, "first", "second", label_smoothing=0.3)
    batch = token_batch(own.examples(), device=torch.device("cpu"))
    real = holes.ids(300)
    logits = whole.model(batch.tokens[:, :-1]).logits[batch.mask][:, real]
    targets = [real.index(token) for token in batch.tokens[:, 1:][batch.mask].tolist()]
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(targets), label_smoothing=0.3, reduction="sum"
    )
    assert own.loss(policy, batch).total.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("component", [SFT, PTX])
def test_without_smoothing_the_loss_is_bit_for_bit_the_sum_of_log_probabilities(loss, component):
    assert loss(component).config.label_smoothing == 0
    policy, own = tiny_policy(), loss(component, "first", "two", label_smoothing=0)
    batch = token_batch(own.examples(), device=torch.device("cpu"))
    term = own.loss(policy, batch)
    expected = -policy.logprobs(batch.tokens, batch.mask)[batch.mask].sum()
    weights = list(policy.parameters())
    assert torch.equal(term.total, expected)
    ours, theirs = (torch.autograd.grad(total, weights) for total in (term.total, expected))
    assert all(map(torch.equal, ours, theirs))


# Entropy bonus


def test_the_entropy_bonus_is_minus_the_entropy_of_the_tokens_that_count(build):
    policy, own = tiny_policy(), build(EntropyBonus)
    batch = token_batch([EXAMPLES[n] for n in ("first", "two")], device=torch.device("cpu"))
    term = own.loss(policy, batch)
    logits = policy.model(batch.tokens[:, :-1]).logits[batch.mask]
    expected = -torch.distributions.Categorical(logits=logits).entropy().sum()
    assert term.total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert term.count.item() == own.count(batch).item() == 3 + 4
    weights = list(policy.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(term.total, weights), torch.autograd.grad(expected, weights)
    )


def test_of_a_uniform_distribution_the_entropy_bonus_is_minus_the_logarithm_of_its_tokens(build):
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.zero_()
    policy = Policy(policy.model, temperature=2, chunk=2, vocabulary=Vocabulary(290, (3, 17)))
    batch = token_batch([EXAMPLES["first"]], device=torch.device("cpu"))
    term = build(EntropyBonus).loss(policy, batch)
    assert term.total.item() == pytest.approx(-3 * math.log(288), rel=1e-12)


def test_the_entropy_bonus_works_on_the_rollout_with_a_coefficient_of_a_hundredth(build):
    assert build(EntropyBonus).examples() is None
    assert build(EntropyBonus).coefficient == 0.01
    assert build(EntropyBonus, coefficient=0.5).coefficient == 0.5
