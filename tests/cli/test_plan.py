"""`rlframe plan`: a table for people, JSON for programs, and what would help."""

import json

import pytest

NAMES = [
    "ddp", "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-3, optimizer offloaded", "ZeRO-3, all offloaded", "fsdp",
]  # fmt: skip


@pytest.fixture
def planned(rlframe, recipe):
    """The JSON of a plan."""

    def run(*arguments):
        ended = rlframe("plan", recipe, *arguments, "--json")
        assert (ended.code, ended.err) == (0, "")
        return json.loads(ended.out)

    return run


def test_a_line_a_strategy_and_the_recipes_own_is_marked(rlframe, recipe):
    ended = rlframe("plan", recipe, "runtime.strategy=deepspeed", "--gpus", "4", "--gpu", "l40s")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    found = [line[2:] for line in lines if line[:2] in ("* ", "  ") and "fits" in line]
    assert [line.split("  ")[0] for line in found] == NAMES
    assert [line[2:8] for line in lines if line.startswith("* ")] == ["ZeRO-2", "the re"]
    assert "4 x l40s of 44.4 GiB" in ended.out
    assert "40% of a GPU's FLOP/s" in ended.out
    assert "docs/plan.md" in ended.out


def test_a_strategy_that_is_not_in_the_list_is_added(planned):
    found = planned("runtime.strategy=deepspeed", "runtime.offload=optimizer")
    assert [row["strategy"] for row in found["strategies"]] == [
        *NAMES,
        "ZeRO-2, optimizer offloaded",
    ]
    assert [row["strategy"] for row in found["strategies"] if row["recipe"]] == [
        "ZeRO-2, optimizer offloaded"
    ]


def test_json_is_in_bytes_and_adds_up(planned):
    found = planned("--gpus", "2")
    assert found["gpus"] == 2
    assert found["device"]["name"] == "h200"
    for row in found["strategies"]:
        assert row["peak"] == sum(row["parts"].values()) == row["moments"][row["moment"]]
        phases = {key: value for key, value in row["seconds"].items() if key != "total"}
        assert row["seconds"]["total"] == pytest.approx(sum(phases.values()))
        assert row["verdict"] == "fits"


def test_memory_can_be_given(planned, rlframe, recipe):
    least = ("--gpu-memory-gib", "0.5")
    assert {row["verdict"] for row in planned(*least)["strategies"]} == {"no"}
    ended = rlframe("plan", recipe, *least)
    assert ended.code == 0
    assert "Neither offloading, frozen models elsewhere, smaller passes nor 1,024 GPUs" in ended.out


def test_what_would_help_is_said(planned):
    wide = "model.policy.architecture.vocab_size=2000000"
    rows = {
        row["strategy"]: row for row in planned(wide, "rollout.prompts_per_update=64")["strategies"]
    }
    least = str(0.6 * rows["ddp"]["peak"] / 2**30)
    again = planned(wide, "rollout.prompts_per_update=64", "--gpu-memory-gib", least, "--gpus", "2")
    ddp = next(row for row in again["strategies"] if row["strategy"] == "ddp")
    assert ddp["verdict"] == "no"
    assert all(help_["peak"] <= 0.9 * float(least) * 2**30 for help_ in ddp["helps"])


def test_an_unknown_gpu_is_a_usage_error_with_a_guess(rlframe, recipe):
    ended = rlframe("plan", recipe, "--gpu", "h100")
    assert ended.code == 2
    assert "Did you mean 'h100-80gb'?" in " ".join(ended.err.replace("│", " ").split())


def test_a_recipe_without_ppo_has_no_plan(rlframe, recipe):
    sections = ("ppo", "kl", "rewards", "rollout", "prompts", "evaluation")
    ended = rlframe("plan", recipe, *(f"~{section}" for section in sections))
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == "error: a plan is about PPO, and the recipe has no `ppo:`\n"


def test_a_misspelt_key_is_the_recipes_error(rlframe, recipe):
    assert rlframe("plan", recipe, "ppo.upates=3").code == 3
