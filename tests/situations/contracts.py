"""Components that break their contract, and recipes that ask for nothing: whoever it was is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.conftest import TINY
from tests.situations import Situation, recipe

HEAD = """
import time

import torch

from rlframe.api import *


class Nothing(PluginConfig):
    pass


"""

PPO = {**TINY["ppo"], "updates": 1}


def local(
    section: Callable[[str], dict[str, Any]], source: str, **more: Any
) -> Callable[[Path], list[str]]:
    """A recipe that names a component of this source, by the sections that hold it."""

    def make(folder: Path) -> list[str]:
        (folder / "mine.py").write_text(HEAD + dedent(source))
        sections = {"ppo": PPO, **section("./mine.py:Mine"), **more}
        return ["train", recipe(folder, **sections), "--allow-local-code", "--output", "run"]

    return make


def reward(body: str, **keys: Any) -> Callable[[Path], list[str]]:
    """A reward whose `score` is this."""
    source = f"class Mine(RewardProvider[Nothing]):\n    def score(self, batch):\n        {body}\n"
    return local(lambda mine: {"rewards": {"mine": {"type": mine, **keys}}}, source)


def controller(update: str, initial: str = "KLState(0.1)", **more: Any) -> Any:
    """A KL controller of two expressions."""
    source = f"""
    class Mine(KLController[Nothing]):
        def initial(self):
            return {initial}

        def update(self, state, measured):
            return {update}
    """
    return local(lambda mine: {"kl": {"controller": {"type": mine}}}, source, **more)


def loss(body: str, more: str = "") -> Any:
    """An auxiliary loss on the rollout, of the statements that return its term."""
    source = (
        "class Mine(AuxiliaryLoss[Nothing]):\n    coefficient = 0.5\n"
        f"    def loss(self, policy, batch):\n        {body}\n{more}"
    )
    return local(lambda mine: {"losses": {"mine": {"type": mine}}}, source)


STREAM = """
    examples_per_step = 2

    def examples(self):
        return Counts()


class Counts:
    at = 1

    def __iter__(self):
        while True:
            self.at = self.at % 99 + 1
            yield TokenExample((1, self.at), 0)

    def state_dict(self):
        return {{"at": self.at}}

    def load_state_dict(self, state):
        {restored}
"""
"""The rest of a loss that learns from a stream: how its cursor is restored is left open."""


def estimator(returned: str) -> Any:
    """An advantage estimator of one expression of `rewards`, `values`, `mask` and `batch`."""
    source = f"""
    class Mine(AdvantageEstimator[Nothing]):
        def estimate(self, batch):
            rewards, values, mask = batch.rewards, batch.values, batch.mask
            return {returned}
    """
    return local(lambda mine: {"algorithm": {"advantages": {"type": mine}}}, source)


def validated(**sections: Any) -> Callable[[Path], list[str]]:
    """`rlframe validate` of a recipe with these sections."""
    return lambda folder: ["validate", recipe(folder, **sections)]


def trained(**sections: Any) -> Callable[[Path], list[str]]:
    """`rlframe train` of a recipe with these sections."""
    return lambda folder: ["train", recipe(folder, **sections), "--output", "run"]


def policy(**keys: Any) -> dict[str, Any]:
    """The model section with more keys in its architecture."""
    model = copy.deepcopy(TINY["model"])
    model["policy"]["architecture"] |= keys
    return model


MINE = "'mine' of type ./mine.py:Mine"
FEW = {"reviews": {"generator": {"type": "product_reviews", "rows": 60}, "heldout": 0.5}}

SITUATIONS = [
    # Rewards
    Situation(
        "a reward returns a mapping from prompts to scores, of the right length",
        reward("return {n: 1.0 for n in range(len(batch))}"),
        1,
        (f"reward {MINE}", "for 4 responses", "A mapping does not say which value belongs to"),
    ),
    Situation(
        "a reward returns the [B, 1] of its model",
        reward("return torch.zeros(len(batch), 1)"),
        1,
        (f"reward {MINE}", "of shape (4, 1)", "It has 2 dimensions"),
    ),
    Situation(
        "a reward is asynchronous",
        local(
            lambda mine: {"rewards": {"mine": {"type": mine}}},
            """
            class Mine(RewardProvider[Nothing]):
                async def score(self, batch):
                    return [0.0] * len(batch)
            """,
        ),
        1,
        (f"reward {MINE}", "must not be `async`"),
    ),
    Situation(
        "a reward that is not cheap to repeat fails, and is asked once",
        reward("self.asked = getattr(self, 'asked', 0) + 1; raise OSError(f'call {self.asked}')"),
        1,
        ("raised OSError in `score`: call 1 [", "Which of 4 responses it was is not known"),
    ),
    Situation(
        "a reward hangs beyond its time limit",
        reward("time.sleep(600)", time_limit_seconds=0.2),
        1,
        (f"reward {MINE}", "has not answered within 0.2 seconds"),
    ),
    Situation(
        "every reward has a weight of 0",
        validated(rewards={"short": {"type": "length", "target_tokens": 4, "weight": 0}}),
        3,
        ("rewards", "every reward has a weight of 0"),
    ),
    Situation(
        "a reward without a weight is normalised",
        validated(
            rewards={
                "short": {"type": "length", "target_tokens": 4},
                "long": {
                    "type": "length",
                    "target_tokens": 9,
                    "weight": 0,
                    "transforms": [{"type": "running_scale"}],
                },
            }
        ),
        3,
        ("rewards.long.transforms", "nothing reads this with a weight of 0"),
    ),
    Situation(
        "a regular expression with lookaround",
        validated(rewards={"polite": {"type": "regex", "pattern": "(?<!not )please"}}),
        3,
        ("rewards.polite.pattern", "RE2", "no lookaround"),
    ),
    Situation(
        "a regular expression with a backreference",
        validated(rewards={"echo": {"type": "regex", "pattern": r"(\w+) \1"}}),
        3,
        ("rewards.echo.pattern", "RE2", "no backreferences"),
    ),
    Situation(
        "a regular expression that is none",
        validated(rewards={"echo": {"type": "regex", "pattern": "(a"}}),
        3,
        ("rewards.echo.pattern", "not a regular expression"),
    ),
    Situation(
        "a rule that scores every response alike",
        validated(rewards={"same": {"type": "regex", "pattern": "a", "no_match": 1}}),
        3,
        ("match and no_match are both 1",),
    ),
    # KL controllers
    Situation(
        "a controller starts above kl.maximum",
        validated(kl={"controller": {"type": "fixed", "coefficient": 0.5}, "maximum": 0.1}),
        3,
        ("kl.controller", "a coefficient of 0.5, above kl.maximum, which is 0.1"),
    ),
    Situation(
        "a controller of one's own starts above kl.maximum",
        controller("state", "KLState(200.0)"),
        3,
        ("kl.controller", MINE.replace("mine", "controller", 1), "above kl.maximum, which is 100"),
    ),
    Situation(
        "a controller starts below 0",
        controller("state", "KLState(-0.1)"),
        4,
        ("kl.controller", "a coefficient of -0.1", "pay for leaving the reference"),
    ),
    Situation(
        "a controller remembers a tensor",
        controller("KLState(0.1, {'kl': torch.tensor(measured.kl)})"),
        1,
        ("KL controller 'controller'", "memory with 'kl'", "a Tensor"),
    ),
    Situation(
        "a controller returns NaN forever",
        controller("KLState(float('nan'))", ppo={**PPO, "updates": 20, "epochs": 1}),
        1,
        ("KL controller 'controller'", "not finite for 11 rollouts in a row"),
    ),
    # Auxiliary losses
    Situation(
        "a loss without a gradient",
        loss("return LossTerm(torch.tensor(1.0), batch.mask.sum())"),
        1,
        (f"auxiliary loss {MINE}", "a total without a gradient"),
    ),
    Situation(
        "a loss that is a mean, over parts that may be empty",
        loss(
            "logprobs = policy.logprobs(batch.tokens, batch.mask)\n"
            "        return LossTerm(-logprobs[batch.mask].mean() * float('nan'), torch.ones(()))",
            "    def count(self, batch):\n        return torch.tensor(float('nan'))\n",
        ),
        1,
        (f"auxiliary loss {MINE}", "`count()` of", "nan"),
    ),
    Situation(
        "a loss whose examples have tokens that the policy lacks",
        loss(
            "return None",
            "    examples_per_step = 1\n    def examples(self):\n"
            "        return [TokenExample((1, 2, 50_000), 0)]\n",
        ),
        4,
        ("losses.mine", "[50000] as tokens", "ints from 0 to 299"),
    ),
    Situation(
        "a loss whose data can be read once only",
        loss(
            "return None",
            "    examples_per_step = 1\n    def examples(self):\n"
            "        return iter([TokenExample((1, 2), 0)])\n",
        ),
        4,
        ("losses.mine", "`examples` returned", "ExampleStream", "`state_dict`"),
    ),
    Situation(
        "a stream of examples that is not resumed where it was",
        loss("return None", STREAM.format(restored="pass")),
        4,
        (
            "losses.mine",
            "is not resumed where it was. Its state before number 0 of pass 1",
            "before `yield`",
        ),
    ),
    Situation(
        "a stream of examples that does not take its state back",
        loss("return None", STREAM.format(restored="self.at = state['position']")),
        1,
        (
            "losses.mine: stream (class Counts) raised KeyError in `load_state_dict`: 'position'",
            "mine.py:",
        ),
    ),
    Situation(
        "a loss with the name of one of PPO's own",
        validated(losses={"policy": {"type": "ptx", "data": "reviews", "gamma": 0.5}}),
        3,
        ("losses.policy", "this name is taken"),
    ),
    # Advantage estimators
    Situation(
        "one advantage per response, where there are as many responses as tokens",
        estimator("Credit(rewards.sum(1), rewards)"),
        1,
        ("advantage estimator", "./mine.py:Mine", "advantages of shape (8,)"),
    ),
    Situation(
        "advantages that are divided by a spread of 0",
        estimator("Credit(rewards.masked_fill(~mask, 0) / 0, values.masked_fill(~mask, 0))"),
        1,
        ("advantage estimator", "not finite for rewards and values that are"),
    ),
    # Options that nothing would read
    Situation(
        "a new mixture of experts with a loss for its router",
        validated(model=policy(model_type="mixtral", router_aux_loss_coef=0.02)),
        3,
        ("model.policy.architecture.router_aux_loss_coef", "nothing reads this"),
    ),
    Situation(
        "a new model with dropout, and no stage that applies it",
        validated(model=policy(attention_dropout=0.1)),
        3,
        ("model.policy.architecture.attention_dropout", "dropout acts in the supervised stages"),
    ),
    Situation(
        "more held-out prompts than there are, some of them alike",
        trained(
            data=FEW,
            prompts={"data": "reviews", "first_words": 2},
            evaluation={"prompts": 500},
            ppo=PPO,
        ),
        0,
        ("evaluation.prompts is 500, but", "prompts repeat the text of another"),
    ),
    # Seeds
    Situation("the largest seed", trained(seed=2**32 - 1, ppo=PPO), 0, ("Everything is in",)),
    Situation("a seed above it", validated(seed=2**32), 3, ("seed", "less than 4294967296")),
    Situation("a seed of 64 bits", validated(seed=2**64), 3, ("seed", "less than 4294967296")),
    # Several copies
    Situation(
        "srun starts several copies",
        trained(),
        5,
        ("srun started 4 copies", "--processes 4"),
        environment=(("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")),
    ),
    Situation(
        "mpirun starts several copies",
        trained(),
        5,
        ("mpirun (Open MPI) started 2 copies",),
        environment=(("OMPI_COMM_WORLD_SIZE", "2"),),
    ),
    Situation(
        "one process in a batch job of several tasks",
        validated(),
        0,
        environment=(("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")),
    ),
]
