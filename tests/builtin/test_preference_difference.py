"""Better than another response by how much: inner rewards and differences done by hand."""

import pytest
import torch
from pydantic import ValidationError

from rlframe.api import ContractError, PluginConfig, RewardProvider, StopReason
from rlframe.api.references import references
from rlframe.builtin.length import Length
from rlframe.builtin.preference_difference import PreferenceDifference
from rlframe.data.encode import RowEncoder
from tests import foreign

INNER = {"type": "length", "target_tokens": 10}


class Scripted(RewardProvider[PluginConfig]):
    """Gives the scores that a test lists, and remembers how often it was asked and with what."""

    def __init__(self, *answers):
        super().__init__(PluginConfig(), None)
        self.answers, self.asked = list(answers), []

    def score(self, batch):
        self.asked.append(batch)
        return self.answers[len(self.asked) - 1]

    def state_dict(self):
        return {"asked": len(self.asked)}

    def load_state_dict(self, state):
        self.asked = [None] * state["asked"]


@pytest.fixture
def difference(build, context):
    """A preference difference of a length reward, or of the given one."""

    def made(against, *, inner=None, given=None, **keys):
        built = inner or build(Length, target_tokens=10)
        inside = context(build_reward=lambda spec: built, **(given or {}))
        return build(PreferenceDifference, inside=inside, reward=INNER, against=against, **keys)

    return made


# Length with target 10:  tokens  5     10    15    20    40
#                         reward -0.5    0   -0.5  -1    -3


def test_against_others_it_is_the_difference_to_the_mean_of_the_other_samples(difference, batch):
    samples = batch(["x"] * 5, ids=[10, 5, 10, 20, 5], groups=[0, 0, 1, 1, 1])
    # group 0: 0 - (-0.5), and back
    # group 1: 0 - (-1 - 0.5)/2 = 0.75;  -1 - (0 - 0.5)/2 = -0.75;  -0.5 - (0 - 1)/2 = 0
    assert difference("others").score(samples) == pytest.approx([0.5, -0.5, 0.75, -0.75, 0.0])


def test_against_others_the_samples_of_a_prompt_need_not_stand_together(difference, batch):
    samples = batch(["x"] * 5, ids=[10, 10, 5, 20, 5], groups=[7, 3, 7, 3, 3])
    assert difference("others").score(samples) == pytest.approx([0.5, 0.75, -0.5, -0.75, 0.0])


def test_against_others_equal_samples_are_worth_nothing(difference, batch):
    samples = batch(["x"] * 3, ids=[40, 40, 40], groups=[0, 0, 0])
    assert difference("others").score(samples) == pytest.approx([0, 0, 0])


def test_against_a_column_it_is_the_difference_to_the_columns_text_which_ends(difference, batch):
    # The column's texts have 4 and 14 words: 5 and 15 tokens with EOS, -0.5 each.
    columns = {"human": ["a " * 4, "a " * 14]}
    samples = batch(["x", "x"], ids=[10, 20], columns=columns)
    assert difference("column", column="human").score(samples) == pytest.approx([0.5, -0.5])


def test_against_a_column_the_inner_reward_sees_its_texts_as_finished_responses(difference, batch):
    inner = Scripted([1.0, 2.0], [0.0, 5.0])
    columns = {"human": ["a good one", "bad"], "other": [1, 2]}
    samples = batch(
        ["x", "y"], ids=[3, 4], columns=columns, groups=[4, 2], stops=[StopReason.LENGTH] * 2
    )
    assert difference("column", column="human", inner=inner).score(samples) == [1.0, -3.0]
    own, other = inner.asked
    assert own is samples
    assert list(other.response_texts) == ["a good one", "bad"]
    assert [ids[-1] for ids in other.response_ids] == [0, 0]  # EOS
    assert other.response_lengths == [4, 2]
    assert list(other.stop_reasons) == [StopReason.EOS, StopReason.EOS]
    assert list(other.group_ids) == [4, 2]
    assert other.prompts == samples.prompts


@pytest.mark.parametrize(("family", "end"), [("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>")])
def test_against_a_column_a_chat_ends_as_its_template_ends_an_answer(
    difference, batch, family, end
):
    words = foreign.tokenizer(family)
    encoder = RowEncoder(words)
    prompt = encoder.prompt(
        {"messages": [{"role": "user", "content": "Is it good?"}], "human": "No."}
    )
    inner = Scripted([1.0], [0.0])
    given = {"tokenizer": words, "tokenize": encoder.example}
    samples = batch(["x"], prompts=[prompt])
    assert difference("column", column="human", inner=inner, given=given).score(samples) == [1.0]
    (ids,) = inner.asked[1].response_ids
    assert words.decode(list(ids)) == f"No.{end}"


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_against_a_column_an_empty_field_is_not_a_text(difference, batch, missing):
    samples = batch(["x", "x"], columns={"human": ["a good one", missing]})
    with pytest.raises(ValueError, match="human"):
        difference("column", column="human").score(samples)


def test_against_the_reference_it_is_the_difference_to_its_response(difference, batch):
    drawn = []

    def sample_reference():
        drawn.append(1)
        return batch(["r", "r"], ids=[20, 5])

    samples = batch(["x", "x"], ids=[10, 15], sample_reference=sample_reference)
    assert difference("reference").score(samples) == pytest.approx([1.0, 0.0])
    assert len(drawn) == 1


def test_against_the_reference_outside_a_ppo_run_it_says_so(difference, batch):
    with pytest.raises(ValueError, match="no reference model"):
        difference("reference").score(batch(["x"]))


@pytest.mark.parametrize("against", ["others", "reference"])
def test_a_shift_of_the_inner_reward_changes_nothing(difference, batch, against):
    found = []
    for shift in (0.0, 100.0):
        inner = Scripted([1.0 + shift, 3.0 + shift], [0.5 + shift, 0.5 + shift])
        reference = batch(["r", "r"])
        samples = batch(["x", "y"], groups=[0, 0], sample_reference=lambda found=reference: found)
        found.append(difference(against, inner=inner).score(samples))
    assert found[0] == pytest.approx(found[1])


def test_a_row_of_token_rewards_counts_as_its_sum(difference, batch):
    inner = Scripted([[1.0, 2.0], [0.5, 0.5]])
    samples = batch(["x", "y"], ids=[2, 2], groups=[0, 0])
    assert difference("others", inner=inner).score(samples) == [2.0, -2.0]


def test_a_response_that_the_inner_reward_can_not_judge_never_becomes_a_number(difference, batch):
    samples = batch(["x", "y", "z"], groups=[0, 0, 1], sample_reference=lambda: batch(["r"] * 3))
    for inner in (
        Scripted([3.0, 1.0, None], [1.0] * 3),
        Scripted([3.0, 1.0, 2.0], [1.0, 1.0, None]),
    ):
        assert difference("reference", inner=inner).score(samples) == [2.0, 0.0, None]


def test_the_mean_of_the_others_is_of_those_that_were_judged(difference, batch):
    samples = batch(["v", "w", "x", "y", "z"], groups=[0, 0, 0, 1, 1])
    inner = Scripted([4.0, None, 1.0, 7.0, None])
    assert difference("others", inner=inner).score(samples) == [3.0, None, -3.0, None, None]


@pytest.mark.parametrize(
    "answer", [{"x": 1.0, "y": 2.0}, {1.0, 2.0}, "ab", torch.zeros(2, 1)], ids=str
)
def test_what_the_inner_reward_returns_is_held_against_the_contract(difference, batch, answer):
    samples = batch(["x", "y"], groups=[0, 0])
    with pytest.raises(ContractError, match="inner reward 'length' returned"):
        difference("others", inner=Scripted(answer)).score(samples)


@pytest.mark.parametrize("cheap", [True, False])
def test_it_is_as_cheap_to_repeat_as_the_inner_reward(difference, cheap):
    inner = Scripted()
    inner.cheap_to_repeat = cheap
    assert difference("others", inner=inner).cheap_to_repeat is cheap


def test_its_state_is_that_of_the_inner_reward(difference, batch):
    inner = Scripted([1.0, 0.0], [1.0, 0.0])
    first = difference("others", inner=inner)
    for _ in range(2):
        first.score(batch(["x", "y"], groups=[0, 0]))
    fresh = Scripted()
    second = difference("others", inner=fresh)
    assert second.state_dict() == {"asked": 0}
    second.load_state_dict(first.state_dict())
    assert len(fresh.asked) == 2


# What it needs


def config(**keys):
    return PreferenceDifference.Config.model_validate({"reward": INNER, **keys})


@pytest.mark.parametrize(("against", "samples"), [("others", 2), ("reference", 1)])
def test_what_compares_the_samples_of_a_prompt_needs_two(against, samples):
    needs = PreferenceDifference.needs(config(against=against))
    assert needs.samples_per_prompt == samples


def test_its_column_is_declared_as_one():
    (found,) = references(config(against="column", column="human"))
    assert (found.path, found.name, found.to) == (("column",), "human", "column")


@pytest.mark.parametrize(
    "keys",
    [{"against": "column"}, {"against": "others", "column": "human"}, {"against": "nobody"}, {}],
)
def test_a_column_goes_with_a_column_and_with_nothing_else(keys):
    with pytest.raises(ValidationError):
        PreferenceDifference.Config.model_validate({"reward": INNER, **keys})


def test_a_reference_that_answers_other_prompts_is_not_compared_with(difference, batch):
    samples = batch(["x", "y"], groups=[0, 1], sample_reference=lambda: batch(["r"]))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        difference("reference", inner=Scripted([1.0, 2.0], [0.0])).score(samples)
