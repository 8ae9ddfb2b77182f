"""Conversations as they are published, as messages of `role` and `content`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlframe.errors import RecipeError

Message = Mapping[str, Any]
"""`role` and `content`, and whatever else the data has of it."""

_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""What `from` says in ShareGPT's form -> the role."""

_SPEAKERS = {"user": "Human", "assistant": "Assistant"}


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, whatever their form."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) for m in value)


def turns(value: Any, column: str) -> list[Message]:
    """Messages with `role` and `content`, from those or from ShareGPT's `from` and `value`.

    Args:
      value: a list of messages, or one message.
      column: where it stood, for errors.

    Raises:
      RecipeError: it is something else.
    """
    messages = [value] if isinstance(value, dict) else value
    if not is_conversation(messages):
        raise RecipeError(
            f"column {column!r} holds {described(value)}, and a list of messages is needed"
        )
    return [_message(message, column) for message in messages]


def _message(message: Message, column: str) -> Message:
    if "from" in message and "value" in message:
        role = _ROLES.get(str(message["from"]).lower())
        if role is None:
            raise RecipeError(
                f"column {column!r}: a message is from {message['from']!r}; known: {', '.join(_ROLES)}"
            )
        return {"role": role, "content": message["value"]}
    if "role" not in message or "content" not in message:
        raise RecipeError(
            f"column {column!r}: a message has the keys {', '.join(map(repr, message)) or 'none'}; it "
            "needs `role` and `content`, or `from` and `value`"
        )
    # Arrow gives every message the keys of all others; what is null was not there.
    return {key: part for key, part in message.items() if part is not None or key == "content"}


def described(value: Any) -> str:
    """A value for an error: its kind, and what it begins with."""
    kinds: dict[type, str] = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    if value is None:
        return "nothing (null)"
    shown = repr(value)
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    return f"{kind}, {shown if len(shown) <= 60 else shown[:57] + '...'}"


def shown(value: Any) -> str:
    """A value as a message shows it: one line, and not all of a long one."""
    text = str(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 160 else text[:157] + "..."


def without_answer(messages: Sequence[Message]) -> list[Message]:
    """What is asked: the messages without a last one of the assistant's."""
    answered = bool(messages) and messages[-1].get("role") == "assistant"
    return list(messages[:-1] if answered else messages)


def transcript(messages: Sequence[Message]) -> str:
    r"""Messages as plain text, as in hh-rlhf: "\n\nHuman: ...\n\nAssistant: ..."."""
    return "".join(
        f"\n\n{_SPEAKERS.get(message['role'], str(message['role']).capitalize())}: {message['content']}"
        for message in messages
    )


def transcript_asked(text: str) -> str | None:
    """A transcript through the "Assistant:" before its last answer; None if the text is none."""
    asked, speaker, answer = text.rpartition("\n\nAssistant:")
    return asked + speaker if "\n\nHuman:" in asked and "\n\nHuman:" not in answer else None
