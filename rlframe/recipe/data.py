"""The recipe's keys about data: where rows come from, what they hold, and how they become prompts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlframe.api.component import ComponentSpec
from rlframe.recipe.section import RecipeSection, Share

DataNames = str | Annotated[dict[str, PositiveFloat], Field(min_length=1)]
DATA = "name of a data set, or a mapping of names to weights"
"""What a key with such a value holds."""


class HubData(RecipeSection):
    """A data set of the Hugging Face hub."""

    id: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None


class GeneratorSpec(ComponentSpec):
    """A data generator."""

    kind: ClassVar[str] = "data_generators"


class Columns(RecipeSection):
    """Which column of the data holds what. A column that is named here has to be there; without a name
    of its own, what the data lacks is simply not there.
    """

    text: str = "text"
    prompt: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "prompt", description="or several columns, joined by line breaks where they are not empty"
    )
    response: str = "response"
    messages: str = "messages"
    chosen: str = "chosen"
    rejected: str = "rejected"
    label: str = "label"
    answers: tuple[str, str] | None = Field(
        None,
        description="two columns of answers, of which `preferred` says which is the chosen one",
    )
    preferred: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description="the better of `answers`: 1 or 2, a or b, its name, 0 for neither; or votes",
    )

    @model_validator(mode="after")
    def _answers_are_compared(self) -> Columns:
        if (self.answers is None) != (self.preferred is None):
            raise ValueError("`answers` and `preferred` go together")
        return self


class Dataset(RecipeSection):
    """A named data set. Its held-out split is fixed here, so that no stage ever trains on it."""

    path: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="a file, a folder or a pattern such as `data/*.jsonl`, or a list of these"
    )
    split: str | None = Field(
        None, description="of a folder with several: its name; train, or the only one, if left out"
    )
    hub: HubData | None = None
    generator: GeneratorSpec | None = None
    columns: Columns = Columns()
    format: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="prompts without messages: as turns of a chat in the tokenizer's template, or as "
        "they are; auto renders them where there is a template and they are not written as a dialogue",
    )
    heldout: Share = Field(0.05, description="share of the rows, chosen by a hash of their content")
    limit: PositiveInt | None = Field(None, description="use the first rows only")

    @model_validator(mode="after")
    def _one_source(self) -> Dataset:
        given = [key for key in ("path", "hub", "generator") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of path, hub, generator; here: {', '.join(given) or 'none'}"
            )
        if self.split is not None and self.path is None:
            raise ValueError("split goes with path; a data set of the hub has `hub.split`")
        return self


class Prompts(RecipeSection):
    """Where prompts come from: a prompt or messages column, or the first words of a text."""

    data: DataNames = Field(description=DATA)
    first_words: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="prompt = so many words of the text"
    )
    template: str | None = Field(
        None, description='text around columns, as in "Question: {question}\\nAnswer:"'
    )
    system: str | None = Field(
        None, description="the system's message of a chat that brings none; needs a chat template"
    )
    max_tokens: PositiveInt | None = Field(
        None, description="of a prompt; as many as leave room for the response, if left out"
    )
    truncate: Literal["error", "drop", "left", "right"] = Field(
        "error",
        description="what becomes of a longer one: the run is refused, the prompt is left out, or it "
        "is cut at that side",
    )

    @model_validator(mode="after")
    def _one_kind_of_prompt(self) -> Prompts:
        if self.first_words is not None:
            for key in ("template", "system"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} writes around a prompt, and first_words continues a text"
                    )
        return self
