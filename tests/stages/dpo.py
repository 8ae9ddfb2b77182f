"""A stage as somebody would add it: direct preference optimisation, which leaves the policy.

`test_table.py` puts this file into a copy of the package, as `rlframe/stages/dpo.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlframe.data.encode import RowEncoder
from rlframe.data.examples import Prepared, preferences
from rlframe.data.fitting import Pair
from rlframe.data.labelled import as_pairs
from rlframe.data.rows import Mapped
from rlframe.engine.streams import token_batch
from rlframe.models.policy import Policy
from rlframe.recipe.schema import DPOStage
from rlframe.runs.saving import Saver
from rlframe.stages.stage import SupervisedRun
from rlframe.stages.supervised import Progress, fit
from rlframe.types import TokenExample

_IGNORED = -100


class DPORun(SupervisedRun[DPOStage, Pair]):
    """Rafailov et al. 2023, eq. 7 (https://arxiv.org/abs/2305.18290)."""

    noun = "pairs"

    def prepare(self) -> Prepared[Pair]:
        context, encoder = self.context, RowEncoder(self.context.tokenizer)
        paired = partial(
            as_pairs, preferred=self.section.preferred_label, count=None, seed=context.seed
        )
        train, heldout = (
            Mapped(paired(part), encoder.pair, within=context.within) for part in context.rows
        )
        found = preferences(
            (train, heldout),
            context.tokenizer,
            max_tokens=self.section.max_tokens,
            max_equal=0.05,
            stage=context.name,
        )
        return context.noted(found, encoder)

    def texts(self, example: Pair) -> Sequence[TokenExample]:
        return example

    def train(self, model: Any, progress: Progress, saver: Saver) -> None:
        policy, pairs = self._policy(model), self.examples.train
        start = _logprobs(policy, pairs)
        examples = [
            {"pair": pair, "start": row.tolist(), "label": 1}
            for pair, row in zip(pairs, start, strict=True)
        ]
        fit(
            _Loss(policy, beta=self.section.beta),
            model,
            examples,
            _collate,
            blank={**examples[0], "label": _IGNORED},
            settings=self.settings,
            progress=progress,
            saver=saver,
        )

    def measure(self, model: Any) -> tuple[dict[str, float], str]:
        chosen, rejected = _logprobs(self._policy(model), self.examples.heldout).unbind(1)
        found = float((chosen > rejected).double().mean())
        return {"accuracy": found}, f"the chosen text is the likelier one in {found:.1%}"

    def _policy(self, model: Any) -> Policy:
        return Policy(
            model,
            temperature=1.0,
            chunk=1024,
            profile=self.context.profile(model),
            vocabulary=self.context.vocabulary,
        )


class _Loss(nn.Module):
    accepts_loss_kwargs = True

    def __init__(self, policy: Policy, *, beta: float) -> None:
        super().__init__()
        self.model = policy.model
        self._policy, self._beta = [policy], beta

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        start: Tensor,
        labels: Tensor,
        *,
        num_items_in_batch: Any,
    ) -> dict[str, Tensor]:
        now = self._policy[0].logprobs(tokens, mask).sum(1)
        chosen, rejected = (self._beta * (now - start)).chunk(2)
        loss = -nn.functional.logsigmoid(chosen - rejected) * (labels != _IGNORED)
        return {"loss": loss.sum() / num_items_in_batch}


def _collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = token_batch(
        [e["pair"][k] for k in (0, 1) for e in examples], device=torch.device("cpu")
    )
    return {
        "tokens": batch.tokens,
        "mask": batch.mask,
        "start": torch.tensor([e["start"][k] for k in (0, 1) for e in examples]),
        "labels": torch.tensor([e["label"] for e in examples]),
    }


@torch.no_grad()
def _logprobs(policy: Policy, pairs: Sequence[Pair]) -> Tensor:
    """[pairs, 2] of whole texts, in nats."""
    rows = [token_batch(pair, device=policy.model.device) for pair in pairs]
    return torch.stack([policy.logprobs(row.tokens, row.mask).sum(1).cpu() for row in rows])
