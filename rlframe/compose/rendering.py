"""Prompts for a model of a run, written as PPO writes its own: template, system message, chat, length.

`compose/prompts.py` does the same for the data sets of a recipe, which are split and checked as one.
Here each prompt stands for itself, and a run without PPO has prompts too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlframe.compose.places import at
from rlframe.data.encode import RowEncoder
from rlframe.data.format import as_chat, is_chat
from rlframe.data.prompts import PromptFormat, Shortening, filled, template_columns
from rlframe.data.roles import understand
from rlframe.data.rows import Held, Lazy, Mapped, names_of
from rlframe.data.sources import read_rows
from rlframe.errors import RecipeError
from rlframe.recipe.data import Columns, Dataset, Prompts
from rlframe.types import Prompt, Row

_ROLES = ("text", "prompt", "messages")
"""What of a data set's columns a prompt is made from."""


@dataclass(frozen=True)
class Written:
    """Prompts as a model reads them."""

    prompts: tuple[tuple[int, Prompt], ...]
    """Each with its number among those given, from 0; some may be left out."""
    notes: tuple[str, ...]
    """What people should know of them."""


@dataclass(frozen=True)
class PromptWriter:
    """Writes prompts as the PPO stage of a run does.

    Args:
      tokenizer: of the policy.
      section: `prompts` of the recipe.
      datasets: what the recipe says of the data sets that its prompts come from.
      chat: whether the run wrote its prompts as turns of a chat; None where that is not known, and the
        prompts themselves decide.
      limit: most tokens of a prompt; None for no limit.
    """

    tokenizer: PreTrainedTokenizerBase
    section: Prompts
    datasets: Sequence[Dataset]
    chat: bool | None
    limit: int | None

    # Where prompts come from

    def rows_of_file(self, path: Path) -> tuple[Lazy[Row], tuple[str, ...]]:
        """(the rows of a file or folder, what people should know of them).

        Raises:
          RecipeError: it cannot be read, is empty, or a row is malformed.
        """
        rows = read_rows(path)
        if not rows:
            raise RecipeError(f"{path} holds no prompts: it is empty")
        names = names_of(rows)
        with at(str(path)):
            found = understand(rows, names, self._columns(names))
        return found.rows, found.notices

    def rows_of_stream(self, text: str) -> tuple[Lazy[Row], tuple[str, ...]]:
        """The same of what was read from a pipe: JSON Lines if it begins with a brace, else text.

        Raises:
          RecipeError: as of `rows_of_file`.
        """
        kind = "jsonl" if text.lstrip("\ufeff \t\r\n").startswith("{") else "txt"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"stdin.{kind}"
            path.write_bytes(text.encode("utf-8", "replace"))
            try:
                rows, notices = self.rows_of_file(path)
            except RecipeError as error:
                raise RecipeError(str(error).replace(str(path), "stdin")) from error
            return Held(list(rows), called="stdin, row"), notices

    def rows_of_texts(self, texts: Sequence[str]) -> Lazy[Row]:
        """Prompts that were given as texts; a template with one column puts each text there.

        Raises:
          RecipeError: the template has several columns, which one text cannot fill.
        """
        return Held([{self._column: text} for text in texts], called="prompt")

    def _columns(self, names: Sequence[str]) -> Mapping[str, Any]:
        """Which column holds what: as in the first of the run's data sets whose columns are there."""
        usual = Columns().model_dump(include=set(_ROLES))
        for dataset in self.datasets:
            own = dataset.columns.model_dump(include=set(_ROLES))
            renamed = {role: given for role, given in own.items() if given != usual[role]}
            wanted = [
                n
                for given in renamed.values()
                for n in ([given] if isinstance(given, str) else given)
            ]
            if wanted and set(wanted) <= set(names):
                return own
        return usual

    @property
    def _column(self) -> str:
        """The column that a text alone fills."""
        if self.section.template is None:
            return "prompt"
        columns = sorted(set(template_columns(self.section.template)))
        if len(columns) != 1:
            raise RecipeError(
                f"the run writes its prompts by a template with {len(columns)} columns "
                f"({', '.join(columns) or 'none'}), which a single text cannot fill: give a file in "
                "which each row has these columns, with --prompts FILE"
            )
        return columns[0]

    # How they are written

    def written(self, rows: Lazy[Row]) -> Written:
        """Rows as prompts, each short enough for its response.

        Args:
          rows: with `prompt`, `messages` or `text`, or the columns of the template.

        Raises:
          RecipeError: a row has no prompt, or one is too long; names its place.
        """
        shaped = Mapped(rows, self._shaped)
        if self._is_chat(shaped):
            shaped = Mapped(shaped, as_chat)
        if self.section.template is None and self.section.system is not None:
            shaped = Mapped(shaped, self._format.row)
        prompts = Mapped(shaped, self._fitting)
        kept = tuple((n, prompt) for n, prompt in enumerate(prompts) if prompt is not None)
        left = len(rows) - len(kept)
        note = (
            f"{left} of {len(rows)} prompts have more than {self.limit} tokens and are left out, as "
            "the recipe of the run says (prompts.truncate: drop)"
        )
        return Written(kept, (note,) if left else ())

    def turn(self, before: Sequence[Mapping[str, str]], text: str) -> Prompt:
        """The prompt of a conversation that goes on.

        Args:
          before: the messages so far.
          text: of the user. Where prompts are no chats, it is the prompt, and `before` is ignored.

        Raises:
          RecipeError: there is no room for the text, even without the messages before it.
        """
        template, system = self.section.template, self.section.system
        said = text if template is None else filled(template, {self._column: text})
        row: Row = {"prompt": said}
        if self.keeps_conversation:
            row = {"messages": [*before, {"role": "user", "content": said}]}
        if system is not None:
            row = PromptFormat(None, system, chat=self._has_template).row(row)
        found = self._encoder.prompt(row)
        if self.limit is None or len(found.ids) <= self.limit:
            return found
        if found.messages is None:
            raise self._too_long(found)
        shorter = Shortening(self._encoder.prompt, self.tokenizer, self.limit, "left").prompt(row)
        if shorter.messages is None or shorter.messages[-1] != found.messages[-1]:
            raise self._too_long(found)  # a line that a person has just written is never cut
        return shorter

    @property
    def keeps_conversation(self) -> bool:
        """Whether a line of the user is a turn of a chat, and not a text to be continued."""
        if self.section.first_words is not None:
            return False
        return self._has_template if self.chat is None else self.chat

    @property
    def _has_template(self) -> bool:
        return bool(self.tokenizer.chat_template)

    @cached_property
    def _encoder(self) -> RowEncoder:
        return RowEncoder(self.tokenizer)

    @property
    def _format(self) -> PromptFormat:
        return PromptFormat(self.section.template, self.section.system, chat=self._has_template)

    def _is_chat(self, rows: Sequence[Row]) -> bool:
        if self.section.first_words is not None or not self._has_template:
            return False
        if self.chat is not None:
            return self.chat
        return is_chat(rows, self.tokenizer, wanted="auto")[0]

    def _shaped(self, row: Row) -> Row:
        """The row with its prompt, if it has no messages."""
        if self.section.template is not None:
            return self._format.row(row)
        words = self.section.first_words
        if words is not None and isinstance(row.get("text"), str):
            text = self._encoder.prompt(row, first_words=words).text
            return {**row, "prompt": text, "messages": None}
        if row.get("prompt") is None and not row.get("messages") and "text" in row:
            return {**row, "prompt": row["text"]}
        return row

    def _fitting(self, row: Row) -> Prompt | None:
        """The row as a prompt of at most `limit` tokens; None if it is to be left out.

        Raises:
          RecipeError: it is longer, and the recipe has no remedy for that.
        """
        found = self._encoder.prompt(row)
        if self.limit is None or len(found.ids) <= self.limit:
            return found
        side = self.section.truncate
        if side == "drop":
            return None
        if side == "error":
            raise self._too_long(found)
        return Shortening(self._encoder.prompt, self.tokenizer, self.limit, side).prompt(row)

    def _too_long(self, prompt: Prompt) -> RecipeError:
        return RecipeError(
            f"the prompt has {len(prompt.ids)} tokens, and {self.limit} leave room for a response: "
            f"{prompt.text[:120]!r}. Shorten it, or allow a shorter response with --max-new-tokens"
        )
