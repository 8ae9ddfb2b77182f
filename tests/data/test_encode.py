"""Rows as tokens: where BOS and EOS stand, what counts as context, and what a row must have."""

import copy

import pytest
from tokenizers import processors

from rlframe.data.encode import RowEncoder, remarks_on
from rlframe.errors import RecipeError
from rlframe.types import TokenExample

BOS, EOS = 1, 2
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def encoder(tokenizer):
    return RowEncoder(tokenizer)


@pytest.fixture
def chatty(tokenizer):
    """An encoder whose tokenizer has a chat template."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = TEMPLATE
    return RowEncoder(other)


@pytest.fixture
def plain(tokenizer):
    """The tokens of a text, without BOS."""
    return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False))


@pytest.fixture
def with_post_processor(tokenizer):
    """An encoder whose tokenizer frames a text in another way."""

    def made(single):
        other = copy.deepcopy(tokenizer)
        other.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
        )
        return RowEncoder(other)

    return made


def test_the_tokenizer_of_these_tests_has_the_ids_they_speak_of(tokenizer):
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (BOS, EOS)


# Whole examples


def test_a_text_stands_between_bos_and_eos_and_has_no_context(encoder, plain):
    example = encoder.example({"text": "the battery is fine"})
    assert example == TokenExample((BOS, *plain("the battery is fine"), EOS), 0)


def test_prompt_and_response_are_joined_the_prompt_and_its_bos_being_context(encoder, plain):
    example = encoder.example({"prompt": "the battery", "response": " is fine"})
    prompt, response = plain("the battery"), plain(" is fine")
    assert example == TokenExample((BOS, *prompt, *response, EOS), 1 + len(prompt))


def test_no_token_reaches_over_the_border_between_prompt_and_response(encoder, plain):
    # "battery" in one piece is fewer tokens than in two: the response is sampled on its own.
    example = encoder.example({"prompt": "the batt", "response": "ery"})
    assert example.ids == (BOS, *plain("the batt"), *plain("ery"), EOS)
    assert example.ids != encoder.example({"text": "the battery"}).ids


def test_an_empty_response_is_an_eos_alone(encoder, plain):
    example = encoder.example({"prompt": "the battery", "response": ""})
    assert example.ids[example.context_tokens :] == (EOS,)


def test_a_text_beside_prompt_and_response_is_not_read(encoder):
    row = {"prompt": "the battery", "response": " is fine"}
    assert encoder.example({**row, "text": "something else"}) == encoder.example(row)


def test_a_prompt_without_a_response_is_read_as_text_if_there_is_one(encoder):
    both = encoder.example({"prompt": "the battery", "text": "the battery is fine"})
    assert both == encoder.example({"text": "the battery is fine"})


def test_a_pair_shares_the_prompt_and_each_answer_ends(encoder, plain):
    row = {"prompt": "the battery", "chosen": " is fine", "rejected": " is bad"}
    prompt = plain("the battery")
    assert encoder.pair(row) == (
        TokenExample((BOS, *prompt, *plain(" is fine"), EOS), 1 + len(prompt)),
        TokenExample((BOS, *prompt, *plain(" is bad"), EOS), 1 + len(prompt)),
    )


def test_a_pair_without_a_prompt_is_two_texts(encoder):
    chosen, rejected = encoder.pair({"chosen": "so fine", "rejected": "so bad"})
    assert chosen == encoder.example({"text": "so fine"})
    assert rejected == encoder.example({"text": "so bad"})


@pytest.mark.parametrize(
    "row", [{"chosen": "a"}, {"chosen": "a", "rejected": None}, {"rejected": "b"}]
)
def test_a_pair_needs_two_answers(encoder, row):
    missing = "chosen" if "chosen" not in row else "rejected"
    with pytest.raises(RecipeError, match=f"no text in column '{missing}' of this row"):
        encoder.pair(row)


def test_an_empty_answer_of_a_pair_is_its_end_alone(encoder):
    _, rejected = encoder.pair({"prompt": "the battery", "chosen": " is fine", "rejected": ""})
    assert rejected.ids[rejected.context_tokens :] == (EOS,)


# Prompts


def test_a_prompt_keeps_its_text_its_row_and_its_bos(encoder, plain):
    row = {"prompt": "the battery", "stars": 5}
    prompt = encoder.prompt(row)
    assert (prompt.text, prompt.ids) == ("the battery", (BOS, *plain("the battery")))
    assert prompt.columns == row
    assert prompt.messages is None


@pytest.mark.parametrize(
    ("text", "words", "prompt"),
    [
        ("the battery is fine", 1, "the"),
        ("the battery is fine", 3, "the battery is"),
        ("the battery is fine", 4, "the battery is fine"),
        ("the battery is fine", 9, "the battery is fine"),
        ("  the battery", 1, "  the"),
        ("the\nbattery\t is fine", 3, "the\nbattery\t is"),
        ("well, isn't it?", 2, "well, isn't"),
    ],
)
def test_the_first_words_of_a_text_are_a_prompt_the_space_after_them_is_not(
    encoder, text, words, prompt
):
    assert encoder.prompt({"text": text}, first_words=words).text == prompt


def test_prompt_and_response_together_are_the_tokens_that_an_example_has(encoder):
    row = {"prompt": "the battery", "response": " is fine"}
    prompt = encoder.prompt(row)
    assert encoder.example(row).ids[: len(prompt.ids)] == prompt.ids


def test_an_empty_prompt_is_a_bos_alone(encoder):
    assert encoder.prompt({"prompt": ""}).ids == (BOS,)


def test_an_empty_prompt_is_refused_if_the_tokenizer_has_no_bos(with_post_processor):
    with pytest.raises(RecipeError, match="an empty prompt, and the tokenizer has no BOS"):
        with_post_processor("$A").prompt({"prompt": ""})


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt(with_post_processor, plain):
    encoder = with_post_processor("<bos> $A <eos>")
    assert encoder.prompt({"prompt": "the battery"}).ids == (BOS, *plain("the battery"))


def test_a_tokenizer_that_ends_every_text_does_not_end_an_example_twice(with_post_processor, plain):
    encoder = with_post_processor("<bos> $A <eos>")
    assert encoder.example({"text": "the battery"}).ids == (BOS, *plain("the battery"), EOS)


# Chats

USER = {"role": "user", "content": "is it fine"}
ASSISTANT = {"role": "assistant", "content": "it is"}
RENDERED = "<user>is it fine\n<assistant>"


def test_a_chat_is_a_prompt_through_the_template_which_writes_its_own_bos(chatty, plain):
    prompt = chatty.prompt({"messages": [USER]})
    assert prompt.text == RENDERED
    assert prompt.ids == plain(RENDERED)
    assert prompt.messages == (USER,)


def test_a_chat_that_was_answered_is_asked_again_without_the_answer(chatty):
    answered = chatty.prompt({"messages": [USER, ASSISTANT]})
    asked = chatty.prompt({"messages": [USER]})
    assert (answered.ids, answered.messages) == (asked.ids, asked.messages)


def test_an_answer_before_the_last_question_is_context(chatty):
    prompt = chatty.prompt({"messages": [USER, ASSISTANT, USER]})
    assert prompt.text == "<user>is it fine\n<assistant>it is\n<user>is it fine\n<assistant>"


def test_of_a_chat_the_last_answer_is_learned_and_all_before_it_is_context(chatty, plain):
    example = chatty.example({"messages": [USER, ASSISTANT]})
    context = plain(RENDERED)
    assert example == TokenExample((*context, *plain("it is"), EOS), len(context))


def test_a_pair_may_answer_a_chat(chatty, plain):
    row = {"messages": [USER], "chosen": "yes", "rejected": "no"}
    chosen, rejected = chatty.pair(row)
    context = plain(RENDERED)
    assert chosen == TokenExample((*context, *plain("yes"), EOS), len(context))
    assert rejected == TokenExample((*context, *plain("no"), EOS), len(context))


def test_a_chat_that_ends_with_a_question_is_no_example(chatty):
    with pytest.raises(RecipeError, match="the last message is not the assistant's"):
        chatty.example({"messages": [ASSISTANT, USER]})


def test_a_chat_needs_a_template(encoder):
    with pytest.raises(RecipeError, match="no chat template"):
        encoder.prompt({"messages": [USER]})


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user"}, ASSISTANT],
        [{"content": "is it fine"}, ASSISTANT],
        ["is it fine", ASSISTANT],
        [USER, {"content": "it is"}],
        [USER, "it is"],
        "is it fine",
    ],
    ids=["no content", "no role", "a word", "an answer by nobody", "a word last", "a text"],
)
@pytest.mark.parametrize("what", ["prompt", "example"])
def test_messages_that_are_no_chat_are_refused(chatty, messages, what):
    with pytest.raises(RecipeError, match="messages"):
        getattr(chatty, what)({"messages": messages})


# What is missing


@pytest.mark.parametrize(
    ("read", "missing"),
    [
        (lambda encoder, row: encoder.example(row), "text"),
        (lambda encoder, row: encoder.prompt(row), "prompt"),
        (lambda encoder, row: encoder.prompt(row, first_words=2), "text"),
    ],
)
def test_a_missing_column_is_told_with_those_that_are_there_and_the_way_to_name_it(
    encoder, read, missing
):
    with pytest.raises(RecipeError) as caught:
        read(encoder, {"review": "nice", "stars": 5})
    message = str(caught.value)
    assert message.startswith(f"no text in column {missing!r} of this row (it has review, stars). ")
    assert "Name the columns in `data.NAME.columns`" in message
    assert message.endswith("The row: {'review': 'nice', 'stars': 5}")


@pytest.mark.parametrize(("value", "kind"), [(5, "int"), (["a"], "list"), ({"a": 1}, "dict")])
@pytest.mark.parametrize(("role", "read"), [("text", "example"), ("prompt", "prompt")])
def test_a_column_of_another_type_is_not_called_a_missing_one(encoder, role, read, value, kind):
    with pytest.raises(RecipeError, match=f"column '{role}' holds a {kind}, not a text") as caught:
        getattr(encoder, read)({role: value})
    assert "no text" not in str(caught.value)


@pytest.mark.parametrize("role", ["prompt", "text"])
def test_a_list_of_messages_in_another_column_suggests_the_column_of_messages(encoder, role):
    row = {role: [USER], "response": "it is"}
    with pytest.raises(RecipeError) as caught:
        encoder.prompt(row) if role == "prompt" else encoder.example(row)
    assert f"`columns: {{messages: {role}}}`" in str(caught.value)


def test_a_lone_surrogate_is_an_error_about_its_row(encoder):
    with pytest.raises(RecipeError, match=r"a row cannot be tokenised: .*The row: .*stars"):
        encoder.example({"text": "the \ud800 battery", "stars": 4})


@pytest.mark.parametrize(("value", "text"), [(True, "True"), (12, "12"), (0.5, "0.5")])
def test_an_answer_that_a_file_holds_as_a_number_is_text_and_counted(encoder, value, text):
    pair = {"prompt": "the battery", "rejected": "no"}
    assert encoder.pair({**pair, "chosen": value}) == encoder.pair({**pair, "chosen": text})
    assert list(remarks_on(encoder.remarks)) == [
        "in 1 of 2 rows an answer is a number or a truth value, and is read as text"
    ]


@pytest.mark.parametrize("empty", ["prompt", "response"])
def test_a_column_that_is_null_as_parquet_fills_in_is_not_there(encoder, empty):
    row = {"text": "the battery", "prompt": None, "response": None, empty: None}
    assert encoder.example(row) == encoder.example({"text": "the battery"})


def test_a_pair_whose_prompt_is_null_is_a_pair_without_a_prompt(encoder):
    pair = {"chosen": "so fine", "rejected": "so bad"}
    assert encoder.pair({**pair, "prompt": None}) == encoder.pair(pair)


def test_a_long_row_is_not_shown_in_full(encoder):
    with pytest.raises(RecipeError) as caught:
        encoder.example({"words": "x" * 10_000})
    assert len(str(caught.value)) < 400
