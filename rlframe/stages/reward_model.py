"""A reward model from pairs: Bradley-Terry on the score of the last token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlframe.data.encode import RowEncoder
from rlframe.data.examples import Prepared, equal_sides, preferences
from rlframe.data.fitting import Pair
from rlframe.data.labelled import as_pairs
from rlframe.data.rows import Mapped
from rlframe.distributed.runtime import Runtime
from rlframe.engine.batching import microbatches
from rlframe.recipe.schema import RewardModelStage
from rlframe.runs.saving import Saver
from rlframe.stages.stage import EVALUATION_TOKENS, SupervisedRun
from rlframe.stages.supervised import FineTuningSettings, Progress, fit
from rlframe.types import ENDS_WITH_TURN, TokenExample

_IGNORED = -100  # the label of a pair that counts for nothing


class RewardModelRun(SupervisedRun[RewardModelStage, Pair]):
    """A model with one output learns which of two texts is preferred."""

    noun = "pairs"

    def prepare(self) -> Prepared[Pair]:
        """Pairs of rows as tokens; labelled texts are paired first."""
        context, section = self.context, self.section
        encoder, (train, heldout) = RowEncoder(context.tokenizer), context.rows
        paired = partial(as_pairs, preferred=section.preferred_label, seed=context.seed)
        found = preferences(
            (
                Mapped(paired(train, count=section.pairs), encoder.pair, within=context.within),
                Mapped(paired(heldout, count=None), encoder.pair, within=context.within),
            ),
            context.tokenizer,
            max_tokens=section.max_tokens,
            max_equal=section.max_equal_pairs,
            stage=context.name,
        )
        return context.noted(found, encoder)

    def texts(self, example: Pair) -> Sequence[TokenExample]:
        """Both sides."""
        return example

    def train(self, model: Any, progress: Progress, saver: Saver) -> None:
        """Bradley-Terry."""
        setattr(model.config, ENDS_WITH_TURN, True)
        train_reward_model(
            model,
            self.examples.train,
            center=self.section.center,
            settings=self.settings,
            progress=progress,
            saver=saver,
        )

    def measure(self, model: Any) -> tuple[dict[str, float], str]:
        """Pairwise accuracy."""
        found = pair_accuracy(
            model, self.examples.heldout, budget=EVALUATION_TOKENS, runtime=self.context.runtime
        )
        return {"accuracy": found}, f"held-out pairwise accuracy {found:.1%}"


def train_reward_model(
    model: Any,
    pairs: Sequence[Pair],
    *,
    center: float,
    settings: FineTuningSettings,
    progress: Progress,
    saver: Saver | None = None,
) -> None:
    """Train a one-output sequence classifier in place.

        loss = -log σ(r_chosen - r_rejected) + center (r_chosen + r_rejected)²

    Ouyang et al. 2022, eq. 1 (https://arxiv.org/abs/2203.02155); the second term as Eisenstein et al.
    2023 (https://arxiv.org/abs/2312.09244), since the first leaves the mean score free.

    Args:
      model: with a `score` head on a causal trunk.
      pairs: (chosen, rejected) tokens, prompt and end included.
      center: weight of the second term.
      settings: hyperparameters; the batch size counts pairs.
      progress: notified of each step.
      saver: of the stage's checkpoints; None for none.
    """
    examples = [{"pair": [e.ids for e in pair], "label": 1} for pair in pairs]
    loss = _BradleyTerry(model, center=center)
    blank: dict[str, Any] = {"pair": [(0,), (0,)], "label": _IGNORED}
    fit(
        loss,
        model,
        examples,
        _collate,
        blank=blank,
        settings=settings,
        progress=progress,
        saver=saver,
    )


class _BradleyTerry(nn.Module):
    accepts_loss_kwargs = True  # Trainer hands over what to divide by

    def __init__(self, model: Any, *, center: float) -> None:
        super().__init__()
        self.model = model
        self._center = center

    def forward(
        self, tokens: Tensor, lengths: Tensor, labels: Tensor, *, num_items_in_batch: Tensor
    ) -> dict[str, Tensor]:
        chosen, rejected = scores(self.model, tokens, lengths).chunk(2)
        loss = -nn.functional.logsigmoid(chosen - rejected)
        loss = (loss + self._center * (chosen + rejected) ** 2) * (labels != _IGNORED)
        return {"loss": loss.sum() / num_items_in_batch}


def _collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    labels = torch.tensor([e["label"] for e in examples])
    return _padded([e["pair"][side] for side in (0, 1) for e in examples]) | {"labels": labels}


def _padded(texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    width = max(map(len, texts))
    return {
        "tokens": torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts]),
        "lengths": torch.tensor([len(ids) for ids in texts]),
    }


def scores(model: Any, tokens: Tensor, lengths: Tensor) -> Tensor:
    """[B] score at the last real token of right-padded [B, L] tokens."""
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    rows = torch.arange(len(tokens), device=tokens.device)
    found: Tensor = model.score(hidden[rows, lengths - 1]).squeeze(-1)
    return found if found.element_size() > 4 else found.float()


@torch.no_grad()
def pair_accuracy(model: Any, pairs: Sequence[Pair], *, budget: int, runtime: Runtime) -> float:
    """Share of pairs whose chosen text scores higher; a tie counts half.

    Two sides of the same tokens are a tie, whatever the rounding of their batches makes of them.

    Args:
      model: with a `score` head.
      pairs: at least one, cut as in training.
      budget: padded tokens in one forward pass.
      runtime: each rank looks at its share.
    """
    share = pairs[runtime.rank :: runtime.world_size]
    texts = [e.ids for pair in share for e in pair]
    found = torch.zeros(len(texts), dtype=torch.float64)
    for rows in microbatches([len(t) for t in texts], list(range(len(texts))), budget=budget):
        batch = {k: v.to(model.device) for k, v in _padded([texts[row] for row in rows]).items()}
        found[rows] = scores(model, **batch).double().cpu()
    equal = torch.tensor([equal_sides(pair) for pair in share], dtype=torch.bool)
    margin = (found[0::2] - found[1::2]).masked_fill(equal, 0)
    won = (margin > 0).double() + 0.5 * (margin == 0).double()
    return float(runtime.sum(won.sum())) / len(pairs)
