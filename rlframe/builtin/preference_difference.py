"""How much better than another response to the same prompt: safer than an absolute score."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

from pydantic import Field, model_validator

from rlframe.api import (
    ColumnName,
    Context,
    ContractError,
    Needs,
    PluginConfig,
    Prompt,
    RewardBatch,
    RewardProvider,
    RewardSpec,
    StopReason,
    token_scores,
)


class PreferenceDifferenceConfig(PluginConfig):
    reward: RewardSpec = Field(description="the reward whose difference is taken")
    against: Literal["column", "reference", "others"] = Field(
        description="a column of the data, a response of the reference model to the same prompt, or "
        "the mean of the prompt's other samples"
    )
    column: ColumnName | None = Field(None, description="with `against: column`: its name")

    @model_validator(mode="after")
    def _column_is_read(self) -> PreferenceDifferenceConfig:
        if (self.against == "column") != (self.column is not None):
            raise ValueError("`column` goes with `against: column`, and with nothing else")
        return self


class PreferenceDifference(RewardProvider[PreferenceDifferenceConfig]):
    """r(prompt, response) - r(prompt, other response), with the same inner reward r."""

    def __init__(self, config: PreferenceDifferenceConfig, context: Context) -> None:
        super().__init__(config, context)
        self.inner: RewardProvider[Any] = context.build_reward(config.reward)
        self.cheap_to_repeat = self.inner.cheap_to_repeat

    @classmethod
    def needs(cls, config: PreferenceDifferenceConfig) -> Needs:
        return Needs(samples_per_prompt=2 if config.against == "others" else 1)

    def score(self, batch: RewardBatch) -> list[float | None]:
        scores = self._asked(batch)
        match self.config.against:
            case "others":
                baseline = _mean_of_others(scores, batch.group_ids)
            case "column":
                baseline = self._asked(self._from_column(batch))
            case "reference":
                if batch.sample_reference is None:
                    raise ValueError(
                        "there is no reference model to compare with outside a PPO run"
                    )
                baseline = self._asked(batch.sample_reference())
        return [
            None if score is None or base is None else score - base
            for score, base in zip(scores, baseline, strict=True)
        ]

    def _asked(self, batch: RewardBatch) -> list[float | None]:
        """One number per response; a row of token rewards counts as its sum."""
        try:
            rows = token_scores(self.inner.score(batch), batch.response_lengths)
        except ContractError as error:
            raise ContractError(
                f"inner reward {self.config.reward.type!r} {error}", row=error.row
            ) from error
        return [None if row is None else sum(row) for row in rows]

    def _from_column(self, batch: RewardBatch) -> RewardBatch:
        """The column's texts as finished responses, with the end that the policy would have written."""
        assert self.config.column is not None
        texts = batch.column(self.config.column)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"column {self.config.column!r} holds a value that is no text")
        ids = [self._answer(*pair) for pair in zip(batch.prompts, texts, strict=True)]
        return batch.with_responses(texts, ids, [StopReason.EOS] * len(batch))

    def _answer(self, prompt: Prompt, text: str) -> list[int]:
        row: dict[str, Any] = {"prompt": prompt.text, "response": text}
        if prompt.messages is not None:
            row = {"messages": [*prompt.messages, {"role": "assistant", "content": text}]}
        example = self.context.tokenize(row).last_span()
        return list(example.ids[example.context_tokens :])

    def state_dict(self) -> dict[str, Any]:
        return dict(self.inner.state_dict())

    def load_state_dict(self, state: Any) -> None:
        self.inner.load_state_dict(state)


def _mean_of_others(scores: list[float | None], groups: Any) -> list[float | None]:
    """None for a response that is not judged, and for one without another that is."""
    judged: dict[int, list[float]] = defaultdict(list)
    for score, group in zip(scores, groups, strict=True):
        if score is not None:
            judged[group].append(score)
    return [
        None
        if score is None or len(judged[group]) < 2
        else (sum(judged[group]) - score) / (len(judged[group]) - 1)
        for score, group in zip(scores, groups, strict=True)
    ]
