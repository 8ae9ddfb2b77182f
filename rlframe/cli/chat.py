"""`rlframe chat RUN`: a conversation with a run's model, a line of the terminal a turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlframe.cli.responding import (
    Checkpoint,
    Greedy,
    MaxNewTokens,
    MinP,
    Run,
    Seed,
    Stage,
    Temperature,
    TopK,
    TopP,
    opened,
)
from rlframe.errors import RecipeError, did_you_mean, listed
from rlframe.text import say

if TYPE_CHECKING:
    from rlframe.compose.responses import Responder

_COMMANDS = {
    "/reset": "begin a new conversation",
    "/help": "show these commands",
    "/exit": "leave, as Ctrl-D and Ctrl-C do",
}


def chat(
    run: Run,
    initial: Annotated[
        bool,
        typer.Option(
            "--initial", help="Show answers of the model that the stage started from too."
        ),
    ] = False,
    stage: Stage = None,
    checkpoint: Checkpoint = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    greedy: Greedy = False,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
) -> None:
    """Talk to a run's model: a line is a turn, or a prompt to continue."""
    try:
        folder, responder = opened(
            run,
            stage=stage,
            checkpoint=checkpoint,
            initial=initial,
            greedy=greedy,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
        )
        how = (
            "Each line is a turn of one conversation"
            if responder.writer.keeps_conversation
            else "Each line is a prompt of its own, which the model continues"
        )
        say(f"{folder}. {how}; /help shows the commands", err=True)
        _converse(_Conversation(responder))
    except KeyboardInterrupt:  # the usual way out, and no failure
        say(err=True)


def _converse(conversation: _Conversation) -> None:
    for line in _lines():
        if line == "/exit":
            return
        if line.startswith("/"):
            _command(conversation, line)
        elif line.strip():
            conversation.say(line)


def _command(conversation: _Conversation, line: str) -> None:
    if line == "/reset":
        conversation.reset()
        say("A new conversation begins", err=True)
        return
    if line == "/help":
        say("\n".join(f"{name}  {what}" for name, what in _COMMANDS.items()), err=True)
        return
    say(
        f"{line} is no command.{did_you_mean(line, _COMMANDS)} There are {listed(_COMMANDS)}; put a "
        "space before a text that begins with /",
        err=True,
    )


def _lines() -> Iterator[str]:
    """What stdin says, line by line, until it ends."""
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:  # a byte that is no UTF-8 should not end a conversation
        reconfigure(errors="replace")
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        # Not by `input`, which clears a KeyboardInterrupt that comes while it flushes the prompt.
        say(prompt, end="")
        line = sys.stdin.readline()
        if not line:
            if prompt:
                say(err=True)
            return
        yield line.rstrip("\r\n")


class _Conversation:
    """What was said to each model so far, and what it answered.

    Args:
      responder: the models.
    """

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._turns = 0
        self._said: dict[str, list[dict[str, str]]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was said."""
        self._said = {name: [] for name in self._responder.models}

    def say(self, text: str) -> None:
        """Show what each model answers. Each has a conversation of its own.

        Random numbers belong to the turn, so that `/reset` and the same line may give another answer.
        """
        for name in self._responder.models:
            try:
                answer = self._answer(name, text)
            except RecipeError as error:  # as a line that is too long; the next one may not be
                say(f"error: {error}", err=True)
                return
            front = f"{name}> " if len(self._responder.models) > 1 else ""
            say(f"{front}{answer}")
        self._turns += 1

    def _answer(self, name: str, text: str) -> str:
        from rlframe.compose.responses import Asked

        responder, said = self._responder, self._said[name]
        prompt = responder.writer.turn(said, text)
        (answer,) = responder.respond([Asked(prompt, self._turns)], model=name)
        if answer.stop_reason == "length":
            say(f"({_cut(responder)})", err=True)
        if responder.writer.keeps_conversation:
            self._remember(name, prompt.messages, answer.text)
        return answer.text

    def _remember(self, name: str, messages: Any, answer: str) -> None:
        """Keep the conversation as the model has read it, and what it answered."""
        kept = [dict(message) for message in messages if message["role"] != "system"]
        before = len(self._said[name]) + 1
        if len(kept) < before:
            say(f"({name}: oldest messages left out: {before - len(kept)})", err=True)
        self._said[name] = [*kept, {"role": "assistant", "content": answer}]


def _cut(responder: Responder) -> str:
    most = responder.rollout.max_new_tokens
    return f"the answer was cut off, since --max-new-tokens is {most}"
