"""What is written around a row, and how a prompt is made short enough."""

import pytest

from rlframe.data.encode import RowEncoder
from rlframe.data.prompts import PromptFormat, Shortening, filled, template_columns
from rlframe.errors import RecipeError
from tests import foreign

# Templates


def test_a_template_is_filled_with_columns_and_braces_in_the_data_are_text():
    row = {"question": "What is {x}?", "n": 3, "a b": "c"}
    assert filled("Q: {question} ({n}, {a b})\nA:", row) == "Q: What is {x}? (3, c)\nA:"
    assert filled("{{literal}} {n}", row) == "{literal} 3"
    assert template_columns("{{x}} {question}{n}") == ("question", "n")


@pytest.mark.parametrize("template", ["{question", "question}", "{}", "{q!r}", "{q:>5}"])
def test_a_template_with_other_braces_is_refused(template):
    with pytest.raises(ValueError, match="written twice"):
        template_columns(template)


def test_a_column_that_is_missing_or_holds_no_text_is_refused():
    with pytest.raises(RecipeError, match=r"no column 'q'\. The row has question, x"):
        filled("{q}", {"question": "?", "x": 1})
    with pytest.raises(RecipeError, match=r"Did you mean 'question'\?"):
        filled("{questio}", {"question": "?", "x": 1})
    with pytest.raises(RecipeError, match=r"column 'x' holds nothing \(null\)"):
        filled("{x}", {"x": None})
    with pytest.raises(RecipeError, match=r"column 'x' holds a list, \[1\]"):
        filled("{x}", {"x": [1]})


# System messages


def test_the_systems_message_stands_first_where_the_chat_has_none():
    form = PromptFormat(None, "be kind", chat=True)
    system, user = {"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}
    assert form.row({"messages": [user]})["messages"] == [system, user]
    assert form.row({"prompt": "hi"})["messages"] == [system, user]
    own = {"role": "system", "content": "be brief"}
    assert form.row({"messages": [own, user]})["messages"] == [own, user]
    with pytest.raises(RecipeError, match="no chat template"):
        PromptFormat(None, "be kind", chat=False).row({"prompt": "hi"})


def test_a_template_takes_the_place_of_messages():
    form = PromptFormat("Q: {q}", None, chat=True)
    assert form.row({"q": "x", "messages": [1]}) == {"q": "x", "messages": None, "prompt": "Q: x"}


# Length


def shortened(row, limit, side, family="base"):
    words = foreign.tokenizer(family)
    encode = RowEncoder(words).prompt
    return Shortening(encode, words, limit, side).prompt(row), words


TEXT = "one two three four five six seven eight nine ten"


@pytest.mark.parametrize("limit", [1, 5, 12, 400])
def test_a_text_is_cut_at_its_side_to_what_fits(limit):
    left, words = shortened({"prompt": TEXT}, limit, "left")
    right, _ = shortened({"prompt": TEXT}, limit, "right")
    assert TEXT.endswith(left.text)
    assert TEXT.startswith(right.text)
    for prompt in (left, right):
        assert len(prompt.ids) <= limit
        assert words.decode(list(prompt.ids)) == prompt.text
        assert prompt.text == TEXT if limit == 400 else len(prompt.ids) >= limit - 1


def test_bos_is_not_cut_off():
    prompt, words = shortened({"prompt": TEXT}, 6, "left", "llama3")
    assert prompt.ids[0] == words.bos_token_id
    assert TEXT.endswith(prompt.text)
    assert len(prompt.ids) == 6


def test_a_character_is_not_cut_in_halves():
    for side in ("left", "right"):
        for limit in range(3, 12):
            prompt, _ = shortened({"prompt": "☃☃☃☃☃☃"}, limit, side)
            assert set(prompt.text) == {"☃"}
            assert len(prompt.ids) <= limit


def chat(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


def test_of_a_chat_the_oldest_turns_go_first_and_the_system_stays():
    system = {"role": "system", "content": "be kind"}
    messages = [system, *chat(TEXT, TEXT, "and then?", "so", "why?")]
    words = foreign.tokenizer("chatml")
    whole = RowEncoder(words).prompt({"messages": [system, *chat("and then?", "so", "why?")]})
    for side in ("left", "right"):
        prompt, _ = shortened({"messages": messages}, len(whole.ids), side, "chatml")
        assert prompt == type(whole)(whole.text, whole.ids, prompt.columns, whole.messages)


def test_what_the_template_writes_is_never_cut():
    words = foreign.tokenizer("chatml")
    frame = len(RowEncoder(words).prompt({"messages": chat("")}).ids)
    for side in ("left", "right"):
        prompt, _ = shortened({"messages": chat(TEXT)}, frame + 8, side, "chatml")
        (message,) = prompt.messages
        assert TEXT.endswith(message["content"]) == (side == "left")
        assert TEXT.startswith(message["content"]) == (side == "right")
        again = RowEncoder(words).prompt({"messages": [message]})
        assert (prompt.text, prompt.ids) == (again.text, again.ids)
        assert frame < len(prompt.ids) <= frame + 8
    with pytest.raises(RecipeError, match=r"may have 3 tokens, and what is written around .* has"):
        shortened({"messages": chat(TEXT)}, 3, "left", "chatml")
