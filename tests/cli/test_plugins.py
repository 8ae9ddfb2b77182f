"""`rlframe plugins list`: what a recipe can name, even if none of it works."""

import importlib
import json
import sys

import pytest

from tests.cli.broken import distribution


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
    keys = {"kind", "name", "distribution", "version", "target"}
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
