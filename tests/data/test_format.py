"""Whether prompts are turns of a chat: what the recipe says, or what the rows look like."""

from __future__ import annotations

from typing import Any

import pytest

from rlframe.data.encode import RowEncoder
from rlframe.data.format import as_chat, is_chat, row_format
from rlframe.errors import RecipeError
from tests import foreign

PLAIN = [{"prompt": f"Is {thing} good?", "response": "Yes."} for thing in ("it", "this", "that")]
RENDERED = [
    {"prompt": f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"}
    for row in PLAIN
]
DIALOGUES = [{"prompt": f"\n\nHuman: {row['prompt']}\n\nAssistant:"} for row in PLAIN]


@pytest.fixture
def words() -> Any:
    return foreign.tokenizer("chatml")


def test_prompts_are_rendered_where_there_is_a_template_and_a_message_says_so(words: Any) -> None:
    chat, note = is_chat(PLAIN, words, wanted="auto")
    assert chat
    assert note is not None
    assert "rendered with the tokenizer's chat template" in note
    assert "`format: plain`" in note


@pytest.mark.parametrize("rows", [RENDERED, DIALOGUES, [*DIALOGUES, PLAIN[0]]])
def test_prompts_that_are_a_dialogue_already_are_left_alone_and_a_message_says_so(
    words: Any, rows: list[dict[str, str]]
) -> None:
    chat, note = is_chat(rows, words, wanted="auto")
    assert not chat
    assert note is not None
    assert f"3 of {len(rows)} are written as a dialogue already" in note
    assert is_chat(rows, words, wanted="chat") == (True, None)


def test_a_few_prompts_with_a_special_token_decide_nothing(words: Any) -> None:
    assert is_chat([*PLAIN, RENDERED[0]], words, wanted="auto")[0]


def test_what_the_recipe_says_needs_no_message(words: Any) -> None:
    assert is_chat(PLAIN, words, wanted="chat") == (True, None)
    assert is_chat(PLAIN, words, wanted="plain") == (False, None)


def test_without_a_template_prompts_are_text(words: Any) -> None:
    base = foreign.tokenizer("base")
    assert is_chat(PLAIN, base, wanted="auto") == (False, None)
    with pytest.raises(RecipeError, match="the policy's tokenizer has none"):
        is_chat(PLAIN, base, wanted="chat")


@pytest.mark.parametrize("wanted", ["chat", "plain"])
def test_a_format_that_no_row_has_a_prompt_for_is_refused(words: Any, wanted: Any) -> None:
    with pytest.raises(RecipeError, match="there are none"):
        is_chat([{"text": "It is fine."}], words, wanted=wanted)


def test_texts_under_a_template_are_said_to_be_texts(words: Any) -> None:
    chat, note = is_chat([{"text": "It is fine."}], words, wanted="auto")
    assert not chat
    assert note is not None
    assert "texts are read as they are" in note
    assert is_chat([{"messages": [{}], "text": "x"}], words, wanted="auto") == (False, None)


@pytest.mark.parametrize("family", [f for f in foreign.FAMILIES if f != "base"])
def test_a_rendered_prompt_is_the_conversation_of_its_row(family: str) -> None:
    encoder = RowEncoder(foreign.tokenizer(family))
    asked = {"role": "user", "content": "Is it good?"}
    answered = [asked, {"role": "assistant", "content": "Yes."}]
    row = {"prompt": "Is it good?", "response": "Yes."}
    assert encoder.example(as_chat(row)) == encoder.example({"messages": answered})
    assert encoder.prompt(as_chat(row)).ids == encoder.prompt({"messages": [asked]}).ids
    pair = {"prompt": "Is it good?", "chosen": "Yes.", "rejected": "No."}
    assert encoder.pair(as_chat(pair))[0] == encoder.example({"messages": answered})


def test_messages_and_texts_stay_as_they_are() -> None:
    for row in ({"text": "x"}, {"prompt": "x", "messages": [{"role": "user", "content": "y"}]}):
        assert as_chat(row) is row


# Pairs of conversations


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SIDES: dict[str, Any] = {
    side: [_said("user", "hi"), _said("assistant", side)] for side in ("chosen", "rejected")
}


@pytest.mark.parametrize(
    "row",
    [
        SIDES,
        {"messages": [_said("user", "hi")], **{s: m[1:] for s, m in SIDES.items()}},
        {"prompt": "hi", **{s: m[1:] for s, m in SIDES.items()}},
        {"prompt": "hi", "messages": SIDES["chosen"], **SIDES},
    ],
    ids=["no prompt", "messages", "prompt of text", "everything"],
)
def test_without_a_chat_template_conversations_are_compared_as_transcripts(
    row: dict[str, Any],
) -> None:
    form, note = row_format([row], foreign.tokenizer("base"), wanted="auto")
    pair = form(row)
    for side in ("chosen", "rejected"):
        assert pair[side] == f"\n\nHuman: hi\n\nAssistant: {side}"
    assert pair.get("prompt") is None
    assert pair.get("messages") is None
    assert "no chat template" in note
    assert row_format([row], foreign.tokenizer("chatml"), wanted="auto")[0] in (None, as_chat)
