"""`rlframe plugins list`: what a recipe can name, even if none of it works."""

import importlib
import json
import sys

import pytest

from rlframe.api.component import API_VERSION
from tests.cli.broken import REWARD, distribution

SPEAKS = f"this rlframe speaks {API_VERSION[0]}.{API_VERSION[1]}"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Install a distribution whose module raises when it is imported."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    module = "raise RuntimeError('imported')\n"
    distribution(site, "brk", offers={"safety": "Reward"}, module=module, version="0.3")
    yield
    importlib.invalidate_caches()


def test_json_is_json_alone_with_an_object_a_component(rlframe):
    ended = rlframe("plugins", "list", "--json")
    assert (ended.code, ended.err) == (0, "")
    listed = json.loads(ended.out)
    keys = {"kind", "name", "distribution", "version", "target", "state"}
    assert all(set(entry) == keys for entry in listed)
    (length,) = [e for e in listed if (e["distribution"], e["name"]) == ("rlframe", "length")]
    assert length["kind"] == "reward_providers"
    assert length["target"] == "rlframe.builtin.length:Length"


def test_a_broken_plugin_is_listed_and_not_imported(rlframe, broken):
    listed = json.loads(rlframe("plugins", "list", "--json").out)
    (entry,) = [e for e in listed if e["distribution"] == "brk"]
    assert entry == {
        "kind": "reward_providers",
        "name": "safety",
        "distribution": "brk",
        "version": "0.3",
        "target": "brk:Reward",
        "state": "ok",
    }
    assert "brk" not in sys.modules


def test_a_broken_plugin_that_nobody_asks_for_disturbs_nobody(rlframe, recipe, broken):
    assert rlframe("validate", recipe).code == 0


def test_the_table_has_a_row_a_component(rlframe, broken):
    ended = rlframe("plugins", "list")
    assert (ended.code, ended.err) == (0, "")
    entries = json.loads(rlframe("plugins", "list", "--json").out)
    rows = [line.split("│")[2].strip() for line in ended.out.splitlines() if line.startswith("│")]
    names = [name for name in rows if name]  # a row may take two lines
    assert len(names) == len(entries)
    assert {"length", "safety", "adaptive", "ptx", "gae"} <= set(names)


def test_every_type_is_shown_in_full_since_it_is_there_to_be_copied(rlframe):
    shown = rlframe("plugins", "list").out
    for entry in json.loads(rlframe("plugins", "list", "--json").out):
        assert entry["name"] in shown


# Everything that can be wrong with a plugin, at once

_API = "\n\nReward.rlframe_api = {api}\n"
_HOOK = """
from rlframe.api import HookPlugin, PluginConfig, hookimpl

class Plugin(HookPlugin[PluginConfig]):
    @hookimpl
    def rlframe_{name}(self, event):
        {body}
"""
MENAGERIE = {
    "good": {},
    "twin": {},
    "unimportable": {"module": "def broken(:\n"},
    "lacking": {"module": "import a_library_that_is_not_there\n", "requires": ("not-there>=2",)},
    "too-old": {"module": REWARD + _API.format(api=(0, 9))},
    "too-new": {"module": REWARD + _API.format(api=(API_VERSION[0], 99))},
    "misspelt": {"module": _HOOK.format(name="metrik", body="pass"), "kind": "hooks"},
    "raising": {"module": _HOOK.format(name="metrics", body="raise KeyError(1)"), "kind": "hooks"},
}


@pytest.fixture
def menagerie(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    for name, how in MENAGERIE.items():
        target = "Plugin" if how.get("kind") == "hooks" else "Reward"
        distribution(site, f"m-{name}", offers={name if name != "twin" else "good": target}, **how)
    yield
    importlib.invalidate_caches()
    for name in MENAGERIE:
        sys.modules.pop(f"m_{name}".replace("-", "_"), None)


def test_listing_works_with_all_of_them_broken_at_once_and_imports_none(rlframe, menagerie):
    ended = rlframe("plugins", "list", "--json")
    assert (ended.code, ended.err) == (0, "")
    states = {e["distribution"]: e["state"] for e in json.loads(ended.out)}
    assert {f"m-{name}" for name in MENAGERIE} <= set(states)
    assert states["m-good"] == "ok as m-good/good; good (m-twin 1.0) has the name too"
    assert states["m-lacking"] == "not-there is not installed: pip install 'not-there>=2'"
    assert states["m-unimportable"] == states["m-too-new"] == states["m-raising"] == "ok"
    assert not [name for name in sys.modules if name.startswith("m_")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("good", "offered by good (m-good 1.0), good (m-twin 1.0); write one of"),
        ("unimportable", "unimportable (m-unimportable 1.0) could not be imported from"),
        ("lacking", "No module named 'a_library_that_is_not_there'"),
        ("too-old", f"is written for plugin API 0.9, {SPEAKS}. Upgrade m-too-old"),
        ("too-new", f"is written for plugin API {API_VERSION[0]}.99, {SPEAKS}. Upgrade rlframe"),
    ],
)
def test_a_recipe_that_names_one_ends_with_4_and_its_own_reason(
    rlframe, recipe, menagerie, name, words
):
    ended = rlframe("validate", recipe, f"rewards.theirs={{type: {name}}}")
    assert ended.code == 4
    assert words in ended.err
    assert "Traceback" not in ended.err


def test_the_good_one_of_two_works_by_its_full_name_and_when_the_other_is_blocked(
    rlframe, recipe, menagerie
):
    theirs = "rewards.theirs={type: m-good/good}"
    assert rlframe("validate", recipe, theirs).code == 0
    plain = "rewards.theirs={type: good}"
    assert rlframe("validate", recipe, plain, "--no-plugin", "m-twin").code == 0


@pytest.mark.parametrize("command", [("validate",), ("show", "--resolved"), ("train",)])
def test_a_block_that_blocks_nothing_is_a_usage_error(rlframe, recipe, menagerie, command):
    ended = rlframe(*command, recipe, "--no-plugin", "m-twinn")
    assert ended.code == 2
    assert "'m-twinn' blocks nothing" in ended.err
    assert "Did you mean 'm-twin'?" in ended.err
    ended = rlframe(*command, recipe, "--no-plugin", "lenght")
    assert ended.code == 2
    assert "Did you mean 'rlframe/length'?" in ended.err
