"""`rlframe plugins check`: the kit's verdict on an installed component, by its name."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlframe.testing.checks import CHECKS
from tests.cli.broken import REWARD, distribution

ROOT = Path(__file__).parents[2]

WHITENS = """\
import torch
from rlframe.api import PluginConfig, RewardProvider


class Config(PluginConfig):
    scale: float


class Reward(RewardProvider[Config]):
    def score(self, batch):
        print("scoring", len(batch))
        scores = torch.tensor([float(len(text)) for text in batch.response_texts])
        return self.config.scale * (scores - scores.mean())
"""

EXACT = """\
from rlframe.api import PluginConfig, RewardProvider


class Exact(RewardProvider[PluginConfig]):
    def score(self, batch):
        pairs = zip(batch.response_texts, batch.column("answer"), strict=True)
        return [float(answer in text) for text, answer in pairs]


class Shown(Exact):
    example_data = {"answer": ["4", "Paris"]}
    example_responses = ["It is 4.", "five", "Paris", "Rome"]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install distributions for this test."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def installed(name, **given):
        distribution(site, name, **given)
        importlib.invalidate_caches()

    yield installed
    importlib.invalidate_caches()


@pytest.fixture
def checked(rlframe):
    """Check with --json: (exit code, outcome of each check, everything)."""

    def run(*arguments):
        ended = rlframe("plugins", "check", *arguments, "--json")
        loaded = json.loads(ended.out)
        return ended.code, {c["check"]: c["outcome"] for c in loaded["checks"]}, loaded

    return run


def test_a_component_that_keeps_its_contract_ends_with_0(checked):
    code, outcomes, message = checked("length")
    assert code == 0
    assert set(outcomes.values()) == {"ok"}
    assert list(outcomes) == [check.name for check in CHECKS["reward_providers"]]
    assert message["passed"] is True
    assert (message["component"], message["kind"]) == ("rlframe/length", "reward_providers")
    assert message["config"] == {"target_tokens": 20}


def test_one_that_does_not_ends_with_1_and_json_is_alone_whatever_it_prints(checked, install):
    install("wht", offers={"whitens": "Reward"}, module=WHITENS)
    code, outcomes, message = checked("whitens", "--config", "scale=2")
    assert code == 1
    assert outcomes["batch_split_invariance"] == "failed"
    assert outcomes["one_value_a_response"] == "ok"
    assert message["passed"] is False


def test_the_table_shows_every_check_and_what_is_wrong(rlframe, install):
    install("wht2", offers={"whitens2": "Reward"}, module=WHITENS)
    ended = rlframe("plugins", "check", "whitens2", "--config", "scale=2")
    assert ended.code == 1
    for check in CHECKS["reward_providers"]:
        assert check.name in ended.out
    assert "likely:" in ended.out
    assert "reward whitens2 (wht2 1.0)" in ended.out
    assert ended.out.splitlines()[-1].endswith("1 failed")


def test_a_check_is_skipped_with_a_reason_and_not_without(checked, rlframe, install):
    install("wht3", offers={"whitens3": "Reward"}, module=WHITENS)
    given = ("whitens3", "--config", "scale=2", "--skip")
    code, outcomes, message = checked(*given, "batch_split_invariance=the mean is the point")
    assert (code, outcomes["batch_split_invariance"]) == (0, "skipped")
    messages = {c["check"]: c["message"] for c in message["checks"]}
    assert messages["batch_split_invariance"] == "the mean is the point"
    for wrong, words in (("batch_split_invariance", "needs a reason"), ("bach=why", "no check")):
        ended = rlframe("plugins", "check", *given, wrong)
        assert ended.code == 2
        assert words in " ".join(ended.err.replace("│", " ").split())


def test_a_config_that_is_missing_is_told_with_the_ways_to_give_it(rlframe, install):
    install("wht4", offers={"whitens4": "Reward"}, module=WHITENS)
    ended = rlframe("plugins", "check", "whitens4")
    assert (ended.code, ended.out) == (3, "")
    assert "scale: Field required" in ended.err
    assert "--config key=value" in ended.err
    assert "example = {...}" in ended.err


def test_a_key_of_the_config_is_laid_over_the_example_in_yaml(checked):
    message = checked("preference_difference", "--config", "reward.target_tokens=7")[2]
    assert message["config"]["reward"] == {"type": "length", "target_tokens": 7}
    message = checked("keyword", "--config", "words=[a, b]", "--config", "per_word=2")[2]
    assert message["config"] == {"words": ["a", "b"], "per_word": 2}


def test_a_key_without_a_value_is_told(rlframe):
    ended = rlframe("plugins", "check", "length", "--config", "target_tokens")
    assert ended.code == 3
    assert "--config 'target_tokens': write key.path=value" in ended.err


@pytest.mark.parametrize("name", ["rlframe/length", "reward:length", "reward_providers:length"])
def test_a_name_may_say_its_distribution_or_its_kind(checked, name):
    assert checked(name)[2]["component"] == "rlframe/length"


def test_a_name_of_several_kinds_is_told_apart(checked, rlframe, install):
    install("fxd", offers={"fixed": "Reward"})
    ended = rlframe("plugins", "check", "fixed")
    assert ended.code == 4
    assert "of several kinds; write one of: reward:fixed, kl:fixed" in ended.err
    assert checked("kl:fixed")[2]["kind"] == "kl_controllers"
    assert checked("fxd/fixed")[2]["kind"] == "reward_providers"


def test_a_distribution_may_be_spelt_as_pip_would(checked, install):
    install("my-words", offers={"mine": "Reward"})
    assert checked("My_Words/mine")[2]["component"] == "my-words/mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenght", "there is no component called 'lenght'. Did you mean 'length'?"),
        ("rlframe/lenght", "there is no component called 'rlframe/lenght'. Did you mean"),
        ("kl:length", "there is no KL controller called 'length'"),
        ("rewrad:length", "there is no kind 'rewrad'. Did you mean 'reward'?"),
    ],
)
def test_a_name_that_nobody_offers_ends_with_4_and_a_guess(rlframe, name, message):
    ended = rlframe("plugins", "check", name)
    assert (ended.code, ended.out) == (4, "")
    assert message in ended.err


def test_a_plugin_that_can_not_be_imported_ends_with_4(rlframe, install):
    install("brk2", offers={"broken2": "Reward"}, module="import detoxify_is_missing\n")
    ended = rlframe("plugins", "check", "broken2", "--json")
    assert (ended.code, ended.out) == (4, "")
    assert "could not be imported" in ended.err


def test_a_kind_without_checks_is_told(rlframe, monkeypatch):
    monkeypatch.delitem(CHECKS, "kl_controllers")
    ended = rlframe("plugins", "check", "fixed")
    assert (ended.code, ended.out) == (4, "")
    assert "is a KL controller, for which the kit has no checks" in ended.err


def test_other_commands_do_not_import_the_kit():
    script = "import sys, rlframe.cli.main; print('rlframe.testing' in sys.modules)"
    message = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    assert message.stdout == "False\n"


def test_two_distributions_with_the_name_are_both_told(rlframe, install):
    for name in ("twin1", "twin2"):
        install(name, offers={"twin": "Reward"}, module=REWARD)
    ended = rlframe("plugins", "check", "twin")
    assert ended.code == 4
    assert "twin1/twin, twin2/twin" in ended.err


def test_a_component_may_carry_the_data_that_it_needs(checked, install):
    install("exc", offers={"exact": "Exact", "shown": "Shown"}, module=EXACT)
    code, outcomes, message = checked("exact")
    assert (code, outcomes["finite"]) == (1, "failed")
    assert "reads a column 'answer'" in message["checks"][3]["message"]
    code, outcomes, message = checked("shown")
    assert (code, set(outcomes.values())) == (0, {"ok"})
    assert not any("proves little" in check["message"] for check in message["checks"])


def test_a_component_in_a_file_is_checked_where_that_is_allowed(rlframe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    refused = rlframe("plugins", "check", "./mine.py:Reward")
    assert (refused.code, "--allow-local-code" in refused.err) == (4, True)
    ended = rlframe("plugins", "check", "./mine.py:Reward", "--json", "--allow-local-code")
    loaded = json.loads(ended.out)
    assert (ended.code, loaded["kind"], loaded["passed"]) == (0, "reward_providers", True)
