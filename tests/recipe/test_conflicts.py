"""Parts of a recipe that are each valid, and cannot be together or would do nothing."""

from __future__ import annotations

import pytest

TOKENIZER = "tokenizer: {data: reviews, vocab_size: 300}"
NEW = f"model.policy={{architecture: {{model_type: mixtral, %s}}, {TOKENIZER}}}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.brevity.weight=0"], "rewards: every reward has a weight of 0"),
        (
            [
                "rewards.other={type: length, target_tokens: 9, weight: 0}",
                "rewards.other.transforms=[{type: running_scale}]",
            ],
            "rewards.other.transforms: nothing reads this with a weight of 0",
        ),
        (
            ["losses.kl={type: ptx, data: reviews, gamma: 0.5}"],
            "losses.kl: this name is taken: the metric loss/kl_avg",
        ),
        (
            ["kl.maximum=0.01"],
            "kl.controller: the KL controller starts with a coefficient of 0.05, above kl.maximum, "
            "which is 0.01",
        ),
        (["kl.minimum=0.5"], "below kl.minimum, which is 0.5"),
        (["kl.controller={type: fixed, coefficient: 101}"], "above kl.maximum, which is 100"),
        ([NEW % "output_router_logits: true"], "output_router_logits: nothing reads this"),
        ([NEW % "router_aux_loss_coef: 0.1"], "router_aux_loss_coef: nothing reads this"),
        ([NEW % "attention_dropout: 0.1"], "attention_dropout: nothing reads this: dropout acts"),
        ([NEW % "resid_pdrop: 0.1"], "resid_pdrop: nothing reads this: dropout acts"),
    ],
    ids=lambda case: str(case)[:50],
)
def test_a_conflict_is_told_with_its_path(
    mistakes, minimal, overrides: list[str], message: str
) -> None:
    (line,) = mistakes(minimal, *overrides)
    assert message in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["rewards.other={type: length, target_tokens: 9, weight: 0}"],
        ["rewards.brevity.weight=-1"],
        ["kl.controller={type: fixed, coefficient: 0}"],
        ["kl.controller={type: fixed, coefficient: 100}"],
        ["losses.values={type: ptx, data: reviews, gamma: 0}"],
        [NEW % "router_aux_loss_coef: 0.0, attention_dropout: 0.0"],
        [NEW % "classifier_dropout: 0.1"],
        [NEW % "attention_dropout: 0.1", "sft={data: reviews}"],
        [NEW % "attention_dropout: 0.1", "reward_model={data: reviews}"],
    ],
    ids=lambda case: str(case)[:50],
)
def test_what_does_something_is_no_conflict(load, minimal, overrides: list[str]) -> None:
    assert load(minimal, *overrides).recipe.ppo is not None


@pytest.mark.parametrize("seed", [2**32, 2**63, 2**64, 10**30, -1])
def test_a_seed_that_something_would_overflow_at_is_refused(mistakes, minimal, seed: int) -> None:
    (line,) = mistakes(minimal, f"seed={seed}")
    assert "seed" in line


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_other_seed_is_taken(load, minimal, seed: int) -> None:
    assert load(minimal, f"seed={seed}").recipe.seed == seed
