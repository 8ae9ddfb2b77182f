"""Conversations of every family of templates: tokens, what is learned, and where an answer ends."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from rlframe.data.chat import ChatFormat, end_ids, messages_of
from rlframe.data.encode import RowEncoder, remarks_on
from rlframe.errors import RecipeError
from tests import foreign

CHATS = [name for name, family in foreign.FAMILIES.items() if family.template]
ENDS = {
    "llama3": "<|eot_id|>",
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "zephyr": "</s>",
    "thinking": "<|im_end|>",
    "phi3": "<|end|>",
}
QUESTION = {"role": "user", "content": "Is it good?"}
ANSWER = {"role": "assistant", "content": "It is fine."}
TWO_TURNS = [
    QUESTION,
    ANSWER,
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes,\nvery."},
]


def with_template(template: str, *, family: str = "base") -> Any:
    words = foreign.tokenizer(family)
    words.chat_template = template
    return words


def whole(words: Any, messages: list[dict[str, Any]], **options: Any) -> tuple[int, ...]:
    """transformers' own tokens of a conversation."""
    return tuple(words.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


def learned(words: Any, example: Any) -> list[str]:
    """What is learned from, as text."""
    return [words.decode(list(example.ids[start:end])) for start, end in example.spans]


@pytest.mark.parametrize("family", CHATS)
def test_the_end_of_an_answer_is_what_the_template_writes_after_it(family: str) -> None:
    words = foreign.tokenizer(family)
    assert ChatFormat(words).end == ENDS[family]
    expected = {words.eos_token_id, words.convert_tokens_to_ids(ENDS[family])}
    assert set(end_ids(words)) == expected
    assert len(end_ids(words)) == len(expected)


@pytest.mark.parametrize("family", CHATS)
def test_a_conversation_has_the_tokens_of_transformers_up_to_its_end(family: str) -> None:
    words = foreign.tokenizer(family)
    example = RowEncoder(words).example({"messages": TWO_TURNS})
    theirs = whole(words, TWO_TURNS)
    assert example.ids == theirs[: len(example.ids)]
    assert words.convert_ids_to_tokens(example.ids[-1]) == ENDS[family]
    behind = words.decode(list(theirs[len(example.ids) :]), skip_special_tokens=True)
    assert not behind.strip()  # a newline, or the end of the whole text
    begins = words.bos_token_id
    assert begins is None or list(example.ids).count(begins) == (family not in ("zephyr",))


@pytest.mark.parametrize("family", CHATS)
def test_every_answer_is_learned_with_its_end_and_nothing_else_is(family: str) -> None:
    words = foreign.tokenizer(family)
    example = RowEncoder(words).example({"messages": TWO_TURNS})
    space = " " if family == "mistral" else ""  # its template writes one in front of an answer
    end = ENDS[family]
    assert learned(words, example) == [f"{space}It is fine.{end}", f"{space}Yes,\nvery.{end}"]
    assert learned(words, example.last_span()) == [f"{space}Yes,\nvery.{end}"]


BODIES = {
    "llama3": "{{ m.content | trim }}<|eot_id|>",
    "chatml": "{{ m.content }}<|im_end|>",
    "gemma": "{{ m.content | trim }}<end_of_turn>",
    "mistral": " {{ m.content }}{{ eos_token }}",
    "zephyr": "{{ m.content }}{{ eos_token }}",
}


@pytest.mark.parametrize("family", BODIES)
def test_the_answers_learned_from_are_those_that_a_template_marks(family: str) -> None:
    """{% generation %} in a template is another way to say it: transformers makes the mask."""
    words = foreign.tokenizer(family)
    example = RowEncoder(words).example({"messages": TWO_TURNS})
    before, body, after = words.chat_template.partition(BODIES[family])
    assert body
    newline = "{{ '\\n' }}" if after.startswith("\n") else ""  # one after a block would be dropped
    words.chat_template = (
        f"{before}{{% if m.role == 'assistant' %}}{{% generation %}}{body}{{% endgeneration %}}"
        f"{{% else %}}{body}{{% endif %}}{newline}{after.removeprefix(chr(10))}"
    )
    masks = words.apply_chat_template(
        TWO_TURNS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert example.ids == tuple(masks["input_ids"][: len(example.ids)])
    assert [int(n) for n in example.counts()] == masks["assistant_masks"][: len(example.ids)]


@pytest.mark.parametrize("family", CHATS)
@pytest.mark.parametrize("messages", [TWO_TURNS, TWO_TURNS[:2], TWO_TURNS[:3]])
def test_a_prompt_has_the_tokens_of_transformers_and_begins_the_example(
    family: str, messages: list[dict[str, Any]]
) -> None:
    words = foreign.tokenizer(family)
    encoder = RowEncoder(words)
    prompt = encoder.prompt({"messages": messages})
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    assert prompt.ids == whole(words, asked, add_generation_prompt=True)
    assert prompt.messages == tuple(asked)
    answered = encoder.example({"messages": [*asked, ANSWER]})
    assert answered.ids[: len(prompt.ids)] == prompt.ids
    assert answered.last_span().context_tokens == len(prompt.ids)


def test_a_llama_3_conversation_by_hand() -> None:
    words = foreign.tokenizer("llama3")
    pieces = (
        "<|begin_of_text|>",
        "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", "Is it good?", "<|eot_id|>",
        "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n",
        "It is fine.", "<|eot_id|>",
    )  # fmt: skip
    tokens = [words.encode(piece, add_special_tokens=False) for piece in pieces]
    example = RowEncoder(words).example({"messages": [QUESTION, ANSWER]})
    assert example.ids == tuple(token for piece in tokens for token in piece)
    assert example.context_tokens == sum(map(len, tokens[:-2]))
    assert example.learned is None


# Ends


def test_a_template_without_a_special_end_ends_with_eos_and_says_so() -> None:
    words = with_template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}")  # fmt: skip
    encoder = RowEncoder(words)
    example = encoder.example({"messages": TWO_TURNS})
    # The end of an earlier answer is not written, so that it cannot be learned there.
    assert learned(words, example) == [" It is fine.", " Yes,\nvery.<|endoftext|>"]
    assert list(remarks_on(encoder.remarks)) == [
        "in 1 of 1 rows the chat template writes no special token after an answer, which therefore "
        "ends with the tokenizer's EOS"
    ]
    assert end_ids(words) == [words.eos_token_id]


def test_an_end_that_the_tokenizer_has_as_an_ordinary_added_token_is_one() -> None:
    words = with_template(foreign.FAMILIES["chatml"].template)
    assert ChatFormat(words).end is None  # eleven tokens of punctuation and letters
    words.add_tokens(["<|im_end|>"])
    assert ChatFormat(words).end == "<|im_end|>"
    example = RowEncoder(words).example({"messages": [QUESTION, ANSWER]})
    assert words.convert_ids_to_tokens(example.ids[-1]) == "<|im_end|>"


def test_of_several_special_tokens_after_an_answer_the_first_is_its_end() -> None:
    """As in Phi-3: every turn ends with one token, the conversation with another."""
    words = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}",
        family="chatml",
    )
    example = RowEncoder(words).example({"messages": TWO_TURNS})
    assert learned(words, example) == ["It is fine.<|im_end|>", "Yes,\nvery.<|im_end|>"]
    assert ChatFormat(words).end == "<|im_end|>"


@pytest.mark.parametrize("family", CHATS)
def test_an_answer_that_has_its_end_in_the_data_does_not_end_twice(family: str) -> None:
    words = foreign.tokenizer(family)
    for end in {ENDS[family], words.eos_token}:
        ended = {"role": "assistant", "content": f"It is fine.{end}\n"}
        assert RowEncoder(words).example({"messages": [QUESTION, ended]}) == RowEncoder(
            words
        ).example({"messages": [QUESTION, ANSWER]})


def test_what_is_not_learned_from_anyway_is_not_remarked_on() -> None:
    thought = {**ANSWER, "content": "<think>Hm.</think>It is fine."}
    row = {"messages": [QUESTION, thought, TWO_TURNS[2]], "chosen": "Yes.", "rejected": "No."}
    encoder = RowEncoder(foreign.tokenizer("thinking"), "last")
    encoder.pair(row)
    encoder.example({"messages": [QUESTION, thought, *TWO_TURNS[2:]]})
    assert list(remarks_on(encoder.remarks)) == []


# Templates that do otherwise


def test_answers_that_are_rewritten_later_are_not_learned_and_counted() -> None:
    words = foreign.tokenizer("thinking")
    encoder = RowEncoder(words)
    thought = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nIt is fine."}
    example = encoder.example({"messages": [QUESTION, thought, *TWO_TURNS[2:]]})
    assert learned(words, example) == ["Yes,\nvery.<|im_end|>"]
    assert "Hm" not in words.decode(list(example.ids))
    assert learned(words, encoder.example({"messages": [QUESTION, thought]})) == [
        "<think>\nHm.\n</think>\n\nIt is fine.<|im_end|>"
    ]
    assert [line.partition(";")[0] for line in remarks_on(encoder.remarks)] == [
        "in 1 of 2 rows the chat template rewrites earlier answers once others follow"
    ]


def test_a_template_that_ignores_the_generation_prompt_still_asks_as_the_assistant() -> None:
    words = with_template(
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    )
    encoder = RowEncoder(words)
    assert encoder.prompt({"messages": [QUESTION]}).text == "USER: Is it good?\nASSISTANT:"
    example = encoder.example({"messages": [QUESTION, ANSWER]})
    assert learned(words, example) == [" It is fine.<|endoftext|>"]


def test_a_generation_prompt_that_the_answer_does_not_begin_with_is_counted() -> None:
    """As in DeepSeek-R1: asked with <think>, written without."""
    words = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        family="chatml",
    )
    encoder = RowEncoder(words)
    assert encoder.prompt({"messages": [QUESTION]}).text.endswith("assistant\n<think>\n")
    example = encoder.example({"messages": [QUESTION, ANSWER]})
    assert example.ids == whole(words, [QUESTION, ANSWER])[: len(example.ids)]
    assert learned(words, example) == ["It is fine.<|im_end|>"]
    (said,) = remarks_on(encoder.remarks)
    assert "begins an answer otherwise than it prompts for one" in said


def test_a_merge_across_the_border_is_not_made() -> None:
    """A response is sampled after the prompt's tokens: newlines on both sides stay two tokens."""
    words = foreign.tokenizer("chatml")
    words.add_tokens(["\n\n"])
    encoder = RowEncoder(words)
    prompt = encoder.prompt({"messages": [QUESTION]})
    example = encoder.example({"messages": [QUESTION, {**ANSWER, "content": "\nIt is fine."}]})
    assert example.ids[: len(prompt.ids)] == prompt.ids
    assert learned(words, example) == ["\nIt is fine.<|im_end|>"]


def test_a_tokenizer_with_a_space_in_front_of_texts_puts_none_in_front_of_answers() -> None:
    """As in Llama 2: a space is put in front of every text, which is wrong where one continues."""
    pieces = ["<unk>", "</s>", "▁", *"[]Aabcdefgimst."]
    raw = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    for response, expected in ((" is", ["▁", "i", "s", "</s>"]), ("is", ["i", "s", "</s>"])):
        example = RowEncoder(words).example({"prompt": "[A]", "response": response})
        answer = example.ids[example.context_tokens :]
        assert words.convert_ids_to_tokens(list(answer)) == expected


# Messages as data sets have them


def test_a_content_in_parts_is_their_text() -> None:
    parts = [{"type": "text", "text": "It is "}, {"type": "text", "text": "fine."}]
    for family in CHATS:
        encoder = RowEncoder(foreign.tokenizer(family))
        assert encoder.example({"messages": [QUESTION, {**ANSWER, "content": parts}]}) == (
            encoder.example({"messages": [QUESTION, ANSWER]})
        )


def test_a_content_that_is_not_text_is_refused_by_its_kind() -> None:
    image = {**QUESTION, "content": [{"type": "image", "url": "x.png"}]}
    with pytest.raises(RecipeError, match=r"parts that are not text \(image\)"):
        RowEncoder(foreign.tokenizer("chatml")).example({"messages": [image, ANSWER]})


def test_an_empty_answer_is_its_end_alone() -> None:
    for family in CHATS:
        words = foreign.tokenizer(family)
        empty = {**ANSWER, "content": ""}
        example = RowEncoder(words).example({"messages": [QUESTION, empty]})
        assert learned(words, example) == [(" " if family == "mistral" else "") + ENDS[family]]


def test_a_call_of_a_tool_is_learned_as_the_template_writes_it_and_its_result_is_not() -> None:
    words = with_template(
        "{% for t in tools or [] %}{{ t.name }};{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.tool_calls is defined %}CALL {{ m.tool_calls[0].name }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        family="chatml",
    )
    # As Parquet fills it in: every message has every key.
    messages = [
        {**QUESTION, "tool_calls": None, "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "look"}], "name": None},
        {"role": "tool", "content": "good", "tool_calls": None, "name": "look"},
        {**ANSWER, "tool_calls": None, "name": None},
    ]
    row = {"messages": messages, "tools": [{"name": "look"}]}
    example = RowEncoder(words).example(row)
    assert learned(words, example) == ["CALL look<|im_end|>", "It is fine.<|im_end|>"]
    assert words.decode(list(example.ids)).startswith("look;<|im_start|>user")
    assert RowEncoder(words).example({**row, "tools": '[{"name": "look"}]'}) == example
    assert RowEncoder(words).example({"messages": messages}) != example


def test_a_greeting_before_anything_was_asked_is_context() -> None:
    words = foreign.tokenizer("chatml")
    greeting = {"role": "assistant", "content": "Hello!"}
    example = RowEncoder(words).example({"messages": [greeting, QUESTION, ANSWER]})
    assert learned(words, example) == ["It is fine.<|im_end|>"]
    with pytest.raises(RecipeError, match="nothing stands before the answer"):
        RowEncoder(words).example({"messages": [greeting]})


def test_a_message_that_the_template_leaves_out_is_counted() -> None:
    words = with_template(
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    encoder = RowEncoder(words)
    encoder.prompt({"messages": [{"role": "system", "content": "Be brief."}, QUESTION]})
    encoder.prompt({"messages": [QUESTION]})
    assert list(remarks_on(encoder.remarks)) == [
        "in 1 of 2 rows the chat template leaves out messages of the role 'system'"
    ]


@pytest.mark.parametrize("family", ["gemma", "mistral"])
@pytest.mark.parametrize("read", ["prompt", "example"])
def test_a_template_without_a_system_role_says_what_it_accepts(family: str, read: str) -> None:
    row = {"messages": [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER], "id": 7}
    with pytest.raises(RecipeError) as caught:
        getattr(RowEncoder(foreign.tokenizer(family)), read)(row)
    said = str(caught.value)
    assert "refuses a conversation of system, user" in said
    assert "System role not supported" in said
    assert "It accepts the rest without the system message" in said
    assert "The row: {'messages'" in said


def test_a_template_that_insists_on_alternation_is_told_what_follows_what() -> None:
    words = with_template(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(RecipeError, match=r"Roles must alternate.*Two messages of one role"):
        RowEncoder(words).example({"messages": [QUESTION, QUESTION, ANSWER]})


@pytest.mark.parametrize(
    "value", ["text", 5, [1], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": ""}]]
)
def test_what_is_no_list_of_messages_is_shown(value: Any) -> None:
    with pytest.raises(RecipeError, match="chosen must be a list of objects with the texts"):
        messages_of(value, column="chosen")


# Pairs


@pytest.mark.parametrize("family", CHATS)
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION], "chosen": "Yes.", "rejected": "No."},
        {
            "messages": [QUESTION],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": {"role": "assistant", "content": "No."},
        },
        {  # whole conversations, with the prompt in a column of its own as well
            "prompt": "Is it good?",
            "chosen": [QUESTION, {"role": "assistant", "content": "Yes."}],
            "rejected": [QUESTION, {"role": "assistant", "content": "No."}],
        },
        {"messages": [QUESTION, ANSWER], "chosen": "Yes.", "rejected": "No."},
    ],
    ids=["texts", "messages", "conversations", "an answer of its own"],
)
def test_a_pair_of_answers_is_two_conversations(family: str, row: dict[str, Any]) -> None:
    words = foreign.tokenizer(family)
    encoder = RowEncoder(words)
    for side, text in zip(encoder.pair(row), ("Yes.", "No."), strict=True):
        answered = [QUESTION, {"role": "assistant", "content": text}]
        assert side == encoder.example({"messages": answered})


def test_a_response_in_a_column_of_its_own_answers_the_messages() -> None:
    encoder = RowEncoder(foreign.tokenizer("chatml"))
    expected = encoder.example({"messages": [QUESTION, ANSWER]})
    for response in ("It is fine.", [ANSWER]):
        assert encoder.example({"messages": [QUESTION], "response": response}) == expected


def test_an_answer_that_is_a_message_answers_a_plain_prompt() -> None:
    encoder = RowEncoder(foreign.tokenizer("base"))
    pair = {"prompt": "Is it good?", "chosen": " Yes.", "rejected": " No."}
    said = {**pair, "chosen": [{"role": "assistant", "content": " Yes."}]}
    assert encoder.pair(said) == encoder.pair(pair)


def test_a_dialogue_in_plain_text_has_all_but_its_last_answer_as_prompt() -> None:
    words = foreign.tokenizer("llama3")
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Good?\n\nAssistant:"
    chosen, rejected = RowEncoder(words).pair({"chosen": text + " Yes.", "rejected": text})
    prompt = words.encode(text)
    assert chosen.ids == (*words.encode(text + " Yes."), words.eos_token_id)
    assert (chosen.context_tokens, rejected.context_tokens) == (len(prompt), len(prompt))
    assert rejected.ids == (*prompt, words.eos_token_id)


# BOS and EOS of texts


@pytest.mark.parametrize("family", foreign.FAMILIES)
def test_a_text_has_one_bos_and_one_eos_whatever_it_has_itself(family: str) -> None:
    words = foreign.tokenizer(family)
    encoder = RowEncoder(words)
    bos = foreign.FAMILIES[family].bos or ""
    expected = (*words.encode("It is fine."), words.eos_token_id)
    for begins in {"", bos}:
        for ends in ("", words.eos_token, f"{words.eos_token}\n"):
            text = f"{begins}It is fine.{ends}"
            assert encoder.example({"text": text}) == encoder.example({"text": "It is fine."})
            assert encoder.example({"text": text}).ids == expected
            assert encoder.pair({"chosen": text, "rejected": "No."})[0].ids == expected
            assert encoder.example(
                {"prompt": f"{begins}Well,", "response": f" yes.{ends}"}
            ).ids == (
                *words.encode("Well, yes."),
                words.eos_token_id,
            )


@pytest.mark.parametrize("family", foreign.FAMILIES)
def test_the_eos_at_the_end_of_a_prompt_stays(family: str) -> None:
    words = foreign.tokenizer(family)
    text = f"It is fine.{words.eos_token}"
    assert RowEncoder(words).prompt({"prompt": text}).ids == tuple(words.encode(text))
    assert RowEncoder(words).prompt({"prompt": text}).ids[-1] == words.eos_token_id


def test_a_tokenizer_that_ends_every_text_keeps_an_eos_that_the_prompt_has_itself() -> None:
    words = copy.deepcopy(foreign.tokenizer("zephyr"))
    special = [(token, words.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=special
    )
    encoder, eos = RowEncoder(words), words.eos_token_id
    assert words.encode("It is fine.")[-1] == eos
    assert encoder.prompt({"prompt": "It is fine."}).ids == tuple(words.encode("It is fine.")[:-1])
    assert encoder.prompt({"prompt": "It is fine.</s>"}).ids == tuple(words.encode("It is fine."))
    assert encoder.example({"text": "It is fine."}).ids == tuple(words.encode("It is fine."))
