"""The prompts of PPO: what is written around each row, how long they may be, and who may see them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rlframe.compose.encoded import EncodedData, within_of
from rlframe.compose.places import at
from rlframe.data.encode import RowEncoder
from rlframe.data.mixture import mixed
from rlframe.data.prompts import PromptFormat, Shortening, longest_prompt, template_columns
from rlframe.data.rows import Lazy, Mapped, Picked
from rlframe.data.split import asked, number_of
from rlframe.errors import RecipeError
from rlframe.recipe.data import Prompts
from rlframe.types import Prompt, Row

if TYPE_CHECKING:
    from rlframe.compose.project import Project

Parts = tuple[Lazy[Prompt], Lazy[Prompt]]
"""(to train on, held out); a prompt is encoded when it is asked for."""


class PromptSource:
    """Makes the prompts of a project.

    Args:
      project: its recipe, tokenizer and processes; the recipe has `prompts`.
      data: its rows.
    """

    def __init__(self, project: Project, data: EncodedData) -> None:
        recipe = project.recipe
        assert recipe.prompts is not None
        self._project = project
        self._recipe = recipe
        self._section: Prompts = recipe.prompts
        self._data = data
        self._tokenizer = project.tokenizer
        self._notes = project.notes
        self._encoder = RowEncoder(self._tokenizer)
        chat = bool(self._tokenizer.chat_template)
        self._format = PromptFormat(self._section.template, self._section.system, chat=chat)
        if self._section.template is not None:
            with at("prompts.template"):
                template_columns(self._section.template)

    def prompts(self) -> Parts:
        """All of them, each short enough for its response.

        Raises:
          RecipeError: a row cannot be a prompt, one is too long, or a part has none.
        """
        data = self._section.data
        if isinstance(data, str):
            return self._of(data)
        found = {name: self._of(name) for name in data}
        with at("prompts.data"):
            return mixed(
                found,
                data,
                seed=self._recipe.seed,
                asked=lambda prompt: asked({"prompt": prompt.text}),
            )

    def _of(self, name: str) -> Parts:
        """The prompts of one data set."""
        split, limit = self._project.split(name), self._limit()
        rows = self._written(name)
        with at("prompts"):
            train, heldout = (
                self._fitting(part, limit, name, which)
                for which, part in zip(("training", "held-out"), rows, strict=True)
            )
        share = self._recipe.data[name].heldout
        if self._section.first_words is not None:
            train, heldout = openings_apart(train, heldout, share=share)
        elif self._section.template is not None:  # rows that differ may ask the same by it
            held = {prompt.text for prompt in heldout}
            train = Picked(train, [i for i, p in enumerate(train) if p.text not in held])
        for which, prompts in (("training", train), ("held-out", heldout)):
            if not prompts:
                raise RecipeError(
                    f"prompts.data: data set {name!r} leaves no {which} prompts "
                    f"({len(split.train)} rows to train on, {len(split.heldout)} held out; "
                    f"data.{name}.heldout is {share})"
                )
        return train, heldout

    def _written(self, name: str) -> tuple[Lazy[Row], Lazy[Row]]:
        """The rows of a data set with what the recipe writes around them."""
        if self._section.template is None:
            train, heldout = self._data.rows(name)
            if self._section.system is None:
                return train, heldout
            return Mapped(train, self._format.row), Mapped(heldout, self._format.row)
        split = self._project.split(name)
        with at("prompts"):
            filled = Mapped(split.train, self._format.row), Mapped(split.heldout, self._format.row)
            parts, note = self._data.formatted(name, filled, self._tokenizer)
        self._notes += [f"data.{name}: {note}"] if note else []
        return parts

    def _limit(self) -> int | None:
        """Most tokens of a prompt."""
        response, shortest = self._recipe.rollout.max_new_tokens, self._project.lengths.shortest
        wanted = self._section.max_tokens
        if shortest is None:
            return wanted
        which, context = shortest
        return longest_prompt(context, response=response, wanted=wanted, model=_called(which))

    def _encode(self, row: Row) -> Prompt:
        return self._encoder.prompt(row, first_words=self._section.first_words)

    def _fitting(self, rows: Lazy[Row], limit: int | None, name: str, which: str) -> Lazy[Prompt]:
        """The rows as prompts; each is encoded once, so that none can fail later."""
        prompts = Mapped(rows, self._encode)
        # The project's encoder counts what people should know of, and sees each row once.
        counted = partial(self._project.encoder.prompt, first_words=self._section.first_words)
        lengths = [len(prompt.ids) for prompt in Mapped(rows, counted, within=within_of(name))]
        long = [i for i, length in enumerate(lengths) if limit is not None and length > limit]
        if not long or limit is None:
            return prompts
        what = f"{which} prompts of data set {name!r}"
        side = self._section.truncate
        if side == "error":
            raise self._too_long(prompts, lengths, limit, what)
        count = f"prompts: {len(long)} of {len(lengths)} {what} have more than {limit} tokens"
        if side == "drop":
            self._notes.append(f"{count} and are left out")
            kept = set(range(len(lengths))).difference(long)
            return Picked(prompts, sorted(kept))
        column = "prompt" if self._section.first_words is None else "text"
        shortening = Shortening(self._encode, self._tokenizer, limit, side, column=column)
        self._notes.append(f"{count} and are cut on the {side}")
        shortened = Mapped(rows, shortening.prompt)
        shortened.many(long)  # none can fail later
        return shortened

    def _too_long(
        self, prompts: Lazy[Prompt], lengths: list[int], limit: int, what: str
    ) -> RecipeError:
        worst = max(range(len(lengths)), key=lengths.__getitem__)
        count = sum(length > limit for length in lengths)
        allowed = "prompts.max_tokens allows"
        if self._section.max_tokens is None and (shortest := self._project.lengths.shortest):
            response = self._recipe.rollout.max_new_tokens
            allowed = (
                f"the context allows: {_called(shortest[0])} reads {shortest[1]} tokens, "
                f"rollout.max_new_tokens is {response}, which leaves"
            )
        return RecipeError(
            f"{count} of {len(lengths)} {what} are longer than {allowed} {limit} tokens. The longest, "
            f"at {prompts.place(worst)}, has {lengths[worst]} tokens, the shortest {min(lengths)}: "
            f"{prompts[worst].text[:120]!r}. Set `prompts.truncate` to drop, left or right, or allow "
            "shorter responses"
        )


def _called(path: str) -> str:
    """The model at a path of the recipe, as an error calls it."""
    return "the model" if path == "model.policy" else f"the model at {path}"


def openings_apart(train: Lazy[Prompt], heldout: Lazy[Prompt], *, share: float) -> Parts:
    """Hold out openings as well as rows: two texts may begin alike and fall on different sides.

    Where one side would have none, the nearest opening changes sides, as in `split_rows`.
    """
    ours, theirs = ([prompt.text for prompt in part] for part in (train, heldout))
    number = {text: number_of({"prompt": text}) for text in (*ours, *theirs)}
    held = {text for text, place in number.items() if place < share * 2**64}
    if theirs and not held.intersection(theirs):
        held.add(min(theirs, key=number.__getitem__))
    if ours and held.issuperset(ours):
        held.discard(max(ours, key=number.__getitem__))
    return (
        Picked(train, [i for i, text in enumerate(ours) if text not in held]),
        Picked(heldout, [i for i, text in enumerate(theirs) if text in held]),
    )
