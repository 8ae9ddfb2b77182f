"""Which components are installed, what a name means, and how a broken one is reported."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import rlframe
from rlframe.api import PluginConfig, RewardProvider
from rlframe.api.component import API_VERSION
from rlframe.errors import PluginError, RecipeError
from rlframe.registry.discovery import KINDS, Registry, fingerprint, unmet
from tests.cli.broken import REWARD

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
BUILT_IN = {
    group.removeprefix("rlframe."): sorted(points)
    for group, points in tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"].items()
    if group.startswith("rlframe.")
}


def refused(name, kind="reward_providers"):
    with pytest.raises(PluginError) as caught:
        Registry().load(kind, name)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_built_in_components_are_found_through_rlframes_own_entry_points(kind):
    offers = [o for o in Registry().offers(kind) if o.distribution == "rlframe"]
    assert [o.name for o in offers] == BUILT_IN.get(kind, [])
    assert all(o.version == rlframe.__version__ for o in offers)


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in BUILT_IN.items() for n in names])
def test_every_built_in_component_loads_by_its_bare_and_its_qualified_name(kind, name):
    registry = Registry()
    component = registry.load(kind, name)
    assert issubclass(component, KINDS[kind][0])
    assert registry.load(kind, f"rlframe/{name}") is component


def test_an_installed_component_is_found_by_its_bare_and_its_qualified_name(install):
    install("acme-rewards", offers={"polite": "Reward"}, version="2.1")
    registry = Registry()
    for name in ("polite", "acme-rewards/polite"):
        offer = registry.find("reward_providers", name)
        assert str(offer) == "polite (acme-rewards 2.1)"
        assert offer.qualified == "acme-rewards/polite"
        assert registry.load("reward_providers", name).Config.model_fields.keys() == {"limit"}


@pytest.mark.parametrize("name", ["acme-rewards/polite", "Acme_Rewards/polite"])
def test_a_distribution_is_found_however_its_name_is_spelt(install, name):
    # https://packaging.python.org/en/latest/specifications/name-normalization/
    install("Acme.Rewards", offers={"polite": "Reward"})
    assert Registry().find("reward_providers", name).name == "polite"


def test_a_component_is_offered_to_its_own_kind_alone(install):
    install("acme", offers={"polite": "Reward"})
    assert "there is no KL controller called 'polite'" in refused("polite", "kl_controllers")


def test_listing_imports_nothing(install):
    install("acme", offers={"polite": "Reward"}, module="raise RuntimeError('imported')\n")
    offers = Registry().offers("reward_providers")
    assert "acme/polite" in {o.qualified for o in offers}
    assert "acme" not in sys.modules


def test_loading_one_component_imports_no_other_distribution(install):
    install("acme", offers={"polite": "Reward"})
    install("brk", offers={"broken": "Reward"}, module="raise RuntimeError('imported')\n")
    Registry().load("reward_providers", "polite")
    assert "acme" in sys.modules
    assert "brk" not in sys.modules


def test_built_in_components_are_listed_first_then_by_distribution_and_name(install):
    install("zeta", offers={"a": "Reward", "c": "Reward"})
    install("acme", offers={"b": "Reward"})
    listed = [o.qualified for o in Registry().offers("reward_providers")]
    own = [f"rlframe/{name}" for name in BUILT_IN["reward_providers"]]
    assert listed[: len(own)] == own
    here = [name for name in listed if name.startswith(("acme/", "zeta/"))]
    assert here == ["acme/b", "zeta/a", "zeta/c"]


# Names


def test_a_name_that_nobody_offers_is_answered_with_a_guess_and_what_is_installed(install):
    install("acme", offers={"polite": "Reward"}, version="0.3")
    message = refused("polit")
    assert message.startswith(
        "there is no reward called 'polit'. Did you mean 'polite'? Installed: "
    )
    assert f"length (rlframe {rlframe.__version__})" in message
    assert "polite (acme 0.3)" in message
    assert "rlframe plugins list" in message


def test_a_name_that_resembles_nothing_is_not_guessed_at():
    assert "Did you mean" not in refused("zzzzzz")


def test_the_guess_for_a_qualified_name_is_a_qualified_name(install):
    install("acme", offers={"length": "Reward"})
    assert "Did you mean 'acme/length'?" in refused("acme/lenght")


def test_two_third_parties_with_one_name_are_both_named_and_either_can_be_written(install):
    install("acme", offers={"polite": "Reward"}, version="1.0")
    install("zeta", offers={"polite": "Reward"}, version="2.0")
    assert refused("polite") == (
        "reward 'polite' is offered by polite (acme 1.0), polite (zeta 2.0); "
        "write one of: acme/polite, zeta/polite"
    )
    registry = Registry()
    assert registry.load("reward_providers", "acme/polite").__module__ == "acme"
    assert registry.load("reward_providers", "zeta/polite").__module__ == "zeta"


def test_a_clash_is_nobodys_business_who_does_not_ask_for_the_name(install):
    install("acme", offers={"polite": "Reward", "kind": "Reward"})
    install("zeta", offers={"polite": "Reward"})
    assert Registry().load("reward_providers", "kind").__module__ == "acme"


def test_a_built_in_name_can_not_be_shadowed_but_the_other_can_be_asked_for(install):
    install("acme", offers={"length": "Reward"})
    registry = Registry()
    assert registry.find("reward_providers", "length").distribution == "rlframe"
    assert registry.load("reward_providers", "acme/length").__module__ == "acme"


def test_a_program_can_offer_a_class_of_its_own():
    class Config(PluginConfig):
        pass

    class Mine(RewardProvider[Config]):
        pass

    registry = Registry()
    registry.add("reward_providers", "mine", Mine)
    assert registry.load("reward_providers", "mine") is Mine
    assert registry.load("reward_providers", "local/mine") is Mine
    assert "there is no reward called 'mine'" in refused("mine")  # in a registry of its own


# Components that cannot be used


@pytest.mark.parametrize(
    ("module", "line", "cause"),
    [
        ("import json\nimport detoxify_is_missing\n", 2, "No module named 'detoxify_is_missing'"),
        ("\n\nraise RuntimeError('no licence')\n", 3, "RuntimeError: no licence"),
        ("def broken():\n    return 1 / 0\n\n\nbroken()\n", 2, "ZeroDivisionError"),
        ("x = 1\ndef broken(:\n", 2, "SyntaxError"),
        pytest.param(
            "import json\n\njson.loads('{')\n",
            3,
            "JSONDecodeError",
        ),
        pytest.param(
            "raise SystemExit(0)\n",
            1,
            "SystemExit",
        ),
    ],
    ids=["dependency", "raises", "raises deeper", "syntax", "raises in a library", "exits"],
)
def test_a_failing_import_is_told_with_component_distribution_cause_and_place(
    install, module, line, cause
):
    file = install("acme", offers={"polite": "Reward"}, module=module, version="0.3")
    message = refused("polite")
    assert message.startswith("reward polite (acme 0.3) could not be imported from acme:Reward: ")
    assert cause in message
    assert f"{file}:{line}]" in message or f"{file.name}, line {line})" in message


def test_a_distribution_for_an_earlier_rlframe_is_told_the_new_name(install):
    install("acme", offers={"polite": "Reward"}, module="from rlframe.hooks import PluginConfig\n")
    assert "`rlframe.hooks` is now `rlframe.api`" in refused("polite")


def test_an_entry_point_that_leads_nowhere_is_told_with_its_target(install):
    install("acme", offers={"polite": "Nobody"})
    message = refused("polite")
    assert "reward polite (acme 1.0) could not be imported from acme:Nobody" in message
    assert "has no attribute 'Nobody'" in message


def test_a_component_of_this_api_is_accepted(install):
    module = f"{REWARD}\n    rlframe_api = {API_VERSION}\n"
    install("acme", offers={"polite": "Reward"}, module=module)
    assert Registry().load("reward_providers", "polite").rlframe_api == API_VERSION


@pytest.mark.parametrize(
    ("version", "shown", "upgrade"),
    [
        ("(1, 9)", "1.9", "acme-rewards"),
        ("(2, 99)", "2.99", "rlframe"),
        ("(3, 0)", "3.0", "rlframe"),
    ],
)
def test_a_component_of_another_api_is_refused_and_told_which_side_to_upgrade(
    install, version, shown, upgrade
):
    module = f"{REWARD}\n    rlframe_api = {version}\n"
    install("acme-rewards", offers={"polite": "Reward"}, module=module)
    message = refused("polite")
    assert (
        f"is written for plugin API {shown}, this rlframe speaks {API_VERSION[0]}.{API_VERSION[1]}"
        in message
    )
    assert message.endswith(f"Upgrade {upgrade}.")


@pytest.mark.parametrize("version", ["'1.0'", "1", "None"])
def test_a_component_whose_api_version_is_malformed_is_refused(install, version):
    module = f"{REWARD}\n    rlframe_api = {version}\n"
    install("acme", offers={"polite": "Reward"}, module=module)
    message = refused("polite")
    assert "reward polite (acme 1.0)" in message
    assert "rlframe_api" in message


@pytest.mark.parametrize(
    "module",
    [
        "class Reward:\n    pass\n",
        "Reward = 3\n",
        "from rlframe.api import KLController, PluginConfig\n\n\n"
        "class Reward(KLController[PluginConfig]):\n    pass\n",
    ],
    ids=["plain class", "number", "another kind"],
)
def test_what_is_no_component_of_the_kind_is_refused(install, module):
    install("acme", offers={"polite": "Reward"}, module=module)
    message = refused("polite")
    assert message == "reward polite (acme 1.0): acme:Reward is not a subclass of RewardProvider"


FUNCTION = "def Reward(completions, by=1):\n    return [float(by)] * len(completions)\n"


def test_a_function_has_an_entry_point_group_of_its_own(install):
    install("acme", offers={"polite": "Reward"}, module=FUNCTION, kind="reward_functions")
    component = Registry().load("reward_providers", "acme/polite")
    assert issubclass(component, RewardProvider)
    assert set(component.Config.model_fields) == {"by"}
    (offer,) = [o for o in Registry().offers("reward_providers") if o.name == "polite"]
    assert (offer.distribution, offer.version) == ("acme", "1.0")


@pytest.mark.parametrize(
    ("kind", "module", "why"),
    [
        (
            "reward_providers",
            FUNCTION,
            "is a function, which is offered through .*reward_functions",
        ),
        (
            "reward_functions",
            REWARD,
            "is no function. A class is offered through .*reward_providers",
        ),
        ("reward_functions", "Reward = 3\n", "is no function"),
    ],
)
def test_a_function_or_a_class_in_the_group_of_the_other_is_told_where_it_belongs(
    install, kind, module, why
):
    install("acme", offers={"polite": "Reward"}, module=module, kind=kind)
    assert re.search(why, refused("polite"))


@pytest.mark.parametrize("key", ["type", "weight"])
def test_a_rewards_config_may_not_declare_a_key_of_the_recipe(install, key):
    install("acme", offers={"polite": "Reward"}, module=REWARD.replace("limit: int", f"{key}: int"))
    message = refused("polite")
    assert "reward polite (acme 1.0)" in message
    assert f"its config declares {key}, which belongs to the recipe" in message


def test_a_controllers_config_may_have_a_weight_since_the_recipe_gives_it_none(install):
    module = (
        "from rlframe.api import KLController, PluginConfig\n\n\n"
        "class Config(PluginConfig):\n    weight: float = 1.0\n\n\n"
        "class PID(KLController[Config]):\n    pass\n"
    )
    install("acme", offers={"pid": "PID"}, module=module, kind="kl_controllers")
    assert "weight" in Registry().load("kl_controllers", "pid").Config.model_fields


def test_a_plugin_that_is_broken_does_not_keep_others_from_loading(install):
    install("brk", offers={"broken": "Reward"}, module="raise RuntimeError('broken')\n")
    registry = Registry()
    with pytest.raises(PluginError):
        registry.load("reward_providers", "broken")
    assert registry.load("reward_providers", "length").__name__ == "Length"


# What may be imported


@pytest.mark.parametrize("rule", ["acme", "Acme", "acme/polite"])
def test_a_blocked_plugin_is_listed_with_the_reason_and_not_imported(install, monkeypatch, rule):
    install("acme", offers={"polite": "Reward"}, module="raise RuntimeError('imported')\n")
    monkeypatch.setenv("RLFRAME_BLOCK_PLUGINS", f"other, {rule}")
    (offer,) = [o for o in Registry().offers("reward_providers") if o.name == "polite"]
    assert offer.blocked == "blocked by $RLFRAME_BLOCK_PLUGINS"
    assert "polite (acme 1.0) is blocked by $RLFRAME_BLOCK_PLUGINS" in refused("polite")


def test_a_command_can_block_too_and_the_other_of_two_takes_the_name(install):
    install("acme", offers={"polite": "Reward"})
    install("zeta", offers={"polite": "Reward"})
    registry = Registry(block=["acme"])
    assert registry.load("reward_providers", "polite").__module__ == "zeta"
    with pytest.raises(PluginError, match="blocked by --no-plugin acme"):
        registry.load("reward_providers", "acme/polite")


def test_an_allow_list_keeps_out_all_others_but_rlframe(install, monkeypatch):
    install("acme", offers={"polite": "Reward"})
    install("zeta", offers={"rude": "Reward"})
    monkeypatch.setenv("RLFRAME_ALLOW_PLUGINS", "zeta")
    registry = Registry()
    assert registry.load("reward_providers", "rude").__module__ == "zeta"
    assert registry.load("reward_providers", "length").__module__ == "rlframe.builtin.length"
    assert "not among those that $RLFRAME_ALLOW_PLUGINS lists" in refused("polite")


def test_blocking_rlframe_as_a_whole_means_nothing_but_one_of_its_components_can_be(monkeypatch):
    monkeypatch.setenv("RLFRAME_BLOCK_PLUGINS", "rlframe,rlframe/length")
    assert "length" in refused("length")
    Registry().load("reward_providers", "keyword")


def test_requirements_that_are_not_met_are_told_with_the_command_that_mends_them(install):
    install("acme", offers={"polite": "Reward"}, version="1.0")
    found = unmet(["acme>=0.9", "acme>=2", "not-there==3", "=bad=", 'x; python_version < "3"'])
    assert [(number, error) for number, _, error in found] == [
        (1, PluginError),
        (2, PluginError),
        (3, RecipeError),
    ]
    assert "acme 1.0 is installed, but this recipe needs 'acme>=2'" in found[0][1]
    assert "pip install --upgrade 'acme>=2'" in found[0][1]
    assert "not-there is not installed: pip install 'not-there==3'" in found[1][1]
    assert "'=bad=' is not a requirement" in found[2][1]


def test_a_fingerprint_changes_with_the_code_and_with_the_config(install):
    install("acme", offers={"polite": "Reward"})

    def taken(limit):
        registry = Registry()
        component = registry.load("reward_providers", "polite")
        offer = registry.find("reward_providers", "polite")
        return fingerprint(offer, component, component.Config(limit=limit))

    first = taken(1)
    assert first == taken(1)
    assert first != taken(2)
    assert (first["distribution"], first["version"], first["name"]) == ("acme", "1.0", "polite")
    assert first["config"] == {"limit": 1}
    file = Path(sys.modules["acme"].__file__)
    file.write_text(file.read_text() + "\n# changed\n")
    assert {key for key, value in taken(1).items() if value != first[key]} == {"sha256"}


def test_a_fingerprint_changes_with_any_module_of_the_package(install):
    file = install("acme", offers={"polite": "Reward"})
    package = file.parent / "acme"
    (package / "deep").mkdir(parents=True)
    file.rename(package / "__init__.py")
    helper = package / "deep" / "words.py"
    helper.write_text("POLITE = ['please']\n")

    def taken():
        registry = Registry()
        component = registry.load("reward_providers", "polite")
        offer = registry.find("reward_providers", "polite")
        return fingerprint(offer, component, component.Config())["sha256"]

    first = taken()
    assert first == taken()
    (package / "notes.txt").write_text("no code")
    assert first == taken()
    helper.write_text("POLITE = ['please', 'thanks']\n")
    changed = taken()
    assert changed != first
    helper.rename(package / "words.py")
    assert taken() not in (first, changed)


def test_a_class_of_a_notebook_has_a_fingerprint_without_a_source():
    # inspect knows no file of a class whose module is not imported: __main__ of a notebook, say
    component = type("Own", (RewardProvider,), {"__module__": "nowhere", "Config": PluginConfig})
    registry = Registry()
    registry.add("reward_providers", "own", component)
    taken = fingerprint(registry.find("reward_providers", "own"), component, PluginConfig())
    assert taken["sha256"] is None
    assert taken["target"] == "nowhere:Own"
