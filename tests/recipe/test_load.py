"""From text to a validated recipe: every mistake at once, with its place, a guess and what there is."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import rlframe
from rlframe.errors import PluginError
from rlframe.recipe import load_recipe
from rlframe.registry import discovery as registry_module
from rlframe.registry.discovery import Registry

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"


def nested(minimal, inner="{type: keyword, words: [good]}"):
    """The minimal recipe with a component inside a component."""
    outer = f"{{type: preference_difference, against: others, reward: {inner}}}"
    rollout = "rollout: {samples_per_prompt: 2}\n"
    return minimal.replace("kl:\n", f"  better: {outer}\n{rollout}kl:\n")


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_that_ships_is_valid(path, monkeypatch, tmp_path):
    # `reviews` runs on a file of the user's, which it expects where the command runs.
    (tmp_path / "reviews.jsonl").write_text('{"text": "fine", "label": 1}\n')
    monkeypatch.chdir(tmp_path)
    assert load_recipe(path).recipe.version == 1


# Mistakes


@pytest.mark.parametrize(
    ("old", "new", "path", "guess"),
    [
        ("updates", "upates", "ppo.upates", "updates"),
        ("policy", "polcy", "model.polcy", "policy"),
        ("prompts", "promts", "promts", "prompts"),
        ("first_words", "first_word", "prompts.first_word", "first_words"),
        ("generator", "genrator", "data.reviews.genrator", "generator"),
        ("rows:", "row:", "data.reviews.generator.row", "rows"),
        ("target_tokens", "target_token", "rewards.brevity.target_token", "target_tokens"),
        ("target: 6.0", "target: 6.0, horizn: 3", "kl.controller.horizn", "horizon"),
    ],
)
def test_an_unknown_key_is_told_with_its_place_and_a_guess(
    mistakes, place, minimal, old, new, path, guess
):
    text = minimal.replace(old, new)
    key = path.rpartition(".")[2]
    at = place(text, f"{key}:")
    message = f"{at}: {path}: unknown key {key!r}. Did you mean {guess!r}? Known here: "
    assert any(line.startswith(message) for line in mistakes(text))


def test_an_unknown_key_that_resembles_nothing_is_told_with_what_there_is(mistakes, minimal):
    (line,) = mistakes(minimal.replace("first_words: 3", "first_words: 3, zzz: 1"))
    assert "Did you mean" not in line
    assert line.endswith("Known here: data, first_words, max_tokens, system, template, truncate")


def test_a_misspelt_weight_of_a_reward_is_answered_with_weight(mistakes, minimal):
    (line,) = mistakes(minimal.replace("target_tokens: 20", "target_tokens: 20, wieght: 2"))
    assert "Did you mean 'weight'?" in line
    known = "gates, on_none, target_tokens, time_limit_seconds, transforms, type, weight"
    assert line.endswith(f"Known here: {known}")


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ("updates: 4", "updates: four", "ppo.updates", "input should be a valid integer"),
        ("updates: 4", "updates: 4.5", "ppo.updates", "input should be a valid integer"),
        ("updates: 4", "updates: 0", "ppo.updates", "input should be greater than 0"),
        ("target: 6.0", "target: -1", "kl.controller.target", "input should be greater than 0"),
        ("target: 6.0", "target: x", "kl.controller.target", "input should be a valid number"),
        ("rows: 200", "rows: [2]", "data.reviews.generator.rows", ""),
        ("ppo: {updates: 4}", "ppo: 4", "ppo", ""),
        ("brevity: {type: length, target_tokens: 20}", "brevity: length", "rewards.brevity", ""),
        ("version: 1", "version: 2", "version", "input should be 1, but it is 2"),
        ("prompts: {data: reviews", "prompts: {data: 3", "prompts.data", "input should be a valid"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_told_with_its_place(
    mistakes, place, minimal, old, new, path, message
):
    text = minimal.replace(old, new)
    at = place(text, "data: 3" if path == "prompts.data" else new)
    (line,) = mistakes(text)
    assert line.startswith(f"{at}: {path}: {message}")


def test_a_wrong_value_is_shown_as_it_was_written(mistakes, minimal):
    (line,) = mistakes(minimal.replace("updates: 4", "updates: four"))
    assert line.endswith("but it is 'four'")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{updates: 4}", "4"),
        ("{type: length, target_tokens: 20}", "length"),
        ("rows: 200", "rows: [200]"),
        ("updates: 4", "updates: {x: 4}"),
    ],
)
def test_a_wrong_type_is_told_without_the_names_of_classes(mistakes, minimal, old, new):
    (line,) = mistakes(minimal.replace(old, new))
    assert "instance of" not in line
    assert "but it is" in line


@pytest.mark.parametrize(
    "override", ["ppo.updates=true", "version=true", "rewards.brevity.weight=true"]
)
def test_a_boolean_is_not_a_number(mistakes, minimal, override):
    (line,) = mistakes(minimal, override)
    assert override.partition("=")[0] in line


def test_a_label_may_be_true_or_false_as_json_has_it(load, minimal):
    loaded = load(minimal, "reward_model={data: reviews, preferred_label: false}")
    assert loaded.recipe.reward_model.preferred_label is False


@pytest.mark.parametrize(
    "override",
    [
        "rewards.brevity.weight=.nan",
        "rewards.brevity.weight=.inf",
        "ppo.learning_rate=.inf",
        "kl.controller.initial=.inf",
    ],
)
def test_a_number_is_finite(mistakes, minimal, override):
    (line,) = mistakes(minimal, override)
    assert override.partition("=")[0] in line
    assert "finite" in line


@pytest.mark.parametrize(
    ("old", "new", "path", "holder"),
    [
        ("{updates: 4}", "{epochs: 1}", "ppo.updates", "ppo"),
        (", target_tokens: 20", "", "rewards.brevity.target_tokens", "brevity"),
        (", target: 6.0", "", "kl.controller.target", "controller"),
    ],
)
def test_a_missing_key_is_told_at_what_should_hold_it(
    mistakes, place, minimal, old, new, path, holder
):
    text = minimal.replace(old, new)
    message = f"{place(text, f'{holder}:')}: {path}: this key is required"
    assert mistakes(text) == [message]


def test_a_missing_type_is_told_with_what_there_is(mistakes, place, minimal):
    text = minimal.replace("type: length, ", "")
    (line,) = mistakes(text)
    at = place(text, "brevity:")
    assert line.startswith(f"{at}: rewards.brevity.type: this key is required; it names a reward: ")
    assert "length" in line


def test_a_key_missing_at_the_top_is_told_with_the_file(mistakes, place, minimal):
    text = minimal.replace("model: {policy: some/model}\n", "")
    assert mistakes(text) == [f"{place(text, 'version')}: model: this key is required"]


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(mistakes, place, minimal):
    text = minimal
    for old, new in [
        ("rows: 200", "rows: none"),
        ("policy: some", "polcy: 1, policy: some"),
        ("target_tokens: 20", "target_tokens: 0"),  # found by the component's own config
        ("type: adaptive", "type: adaptive, horizn: 3"),  # and so is this
        ("{updates: 4}", "{minibatches: x, updates: 4, max_grad_norm: -1}"),
    ]:
        text = text.replace(old, new)
    assert [line.split(": ")[:2] for line in mistakes(text)] == [
        [place(text, "rows: none"), "data.reviews.generator.rows"],
        [place(text, "polcy"), "model.polcy"],
        [place(text, "target_tokens: 0"), "rewards.brevity.target_tokens"],
        [place(text, "horizn"), "kl.controller.horizn"],
        [place(text, "minibatches"), "ppo.minibatches"],
        [place(text, "max_grad_norm"), "ppo.max_grad_norm"],
    ]


def test_mistakes_of_overrides_come_after_those_of_the_file_and_name_the_override(
    mistakes, place, minimal
):
    text = minimal.replace("updates: 4", "updates: x")
    first, *rest = mistakes(text, "seed=-1", "kl.controler.target=3")
    assert first.startswith(f"{place(text, 'updates')}: ppo.updates: ")
    assert sorted(rest) == [
        "override 'kl.controler.target=3': kl.controler: unknown key 'controler'. Did you mean "
        "'controller'? Known here: controller, estimator, maximum, minimum, placement",
        "override 'seed=-1': seed: input should be greater than or equal to 0, but it is -1",
    ]


def test_of_a_union_the_deepest_mistake_is_told_once(mistakes, place, minimal):
    # `model.policy` is a name or a new model; a mapping was given, so no word about names.
    new = "policy: {architecture: {}, tokenizer: {data: reviews, vocab_size: 12}}"
    text = minimal.replace("policy: some/model", new)
    (line,) = mistakes(text)
    assert line.startswith(f"{place(text, 'vocab_size')}: model.policy.tokenizer.vocab_size: ")


@pytest.mark.parametrize("key", ["3", "1.5", "true", "~"])
def test_a_key_that_is_no_word_is_refused(mistakes, minimal, key):
    (line,) = mistakes(f"{minimal}{key}: x\n")
    assert "keys should be strings" in line


# Components


def test_a_recipe_knows_its_components_by_their_paths(load, minimal):
    chosen = load(nested(minimal)).chosen
    assert {".".join(path): choice.offer.qualified for path, choice in chosen.items()} == {
        "data.reviews.generator": "rlframe/product_reviews",
        "rewards.brevity": "rlframe/length",
        "rewards.better": "rlframe/preference_difference",
        "rewards.better.reward": "rlframe/keyword",
        "kl.controller": "rlframe/adaptive",
        "rollout.sampler": "rlframe/builtin",
        "algorithm.advantages": "rlframe/gae",
        "algorithm.policy_loss": "rlframe/clip",
        "algorithm.value_loss": "rlframe/clipped",
    }
    assert chosen["rewards", "better", "reward"].config.words == ("good",)


@pytest.mark.parametrize(
    ("inner", "path", "words"),
    [
        ("{type: length, target_tokins: 3}", "target_tokins", "target_tokins: 3"),
        ("{type: length, target_tokens: 0}", "target_tokens", "target_tokens: 0"),
        ("{type: length}", "target_tokens", "reward: {type: length}"),
        (
            "{type: preference_difference, against: others, "
            "reward: {type: length, target_tokens: x}}",
            "reward.target_tokens",
            "target_tokens: x",
        ),
    ],
)
def test_the_keys_of_a_component_inside_a_component_are_checked_at_their_own_path(
    mistakes, place, minimal, inner, path, words
):
    text = nested(minimal, inner)
    message = f"{place(text, words)}: rewards.better.reward.{path}: "
    assert any(line.startswith(message) for line in mistakes(text))


def test_a_type_that_nobody_offers_is_a_plugin_error_that_lists_what_is_installed(
    load, place, minimal
):
    text = minimal.replace("type: length", "type: lenght")
    with pytest.raises(PluginError) as caught:
        load(text)
    message = str(caught.value)
    at = place(text, "type: lenght")
    assert message.startswith(f"{at}: rewards.brevity.type: there is no reward called 'lenght'")
    assert "Did you mean 'length'?" in message
    assert f"length (rlframe {rlframe.__version__})" in message
    assert f"keyword (rlframe {rlframe.__version__})" in message
    assert "adaptive" not in message  # that is no reward


def test_an_unknown_type_inside_a_component_is_a_plugin_error_too(load, place, minimal):
    text = nested(minimal, "{type: kewyord, words: [good]}")
    with pytest.raises(PluginError) as caught:
        load(text)
    assert str(caught.value).startswith(
        f"{place(text, 'type: kewyord')}: rewards.better.reward.type: there is no reward called"
    )


def test_with_a_mistake_beside_the_missing_plugin_it_is_a_recipe_error_that_tells_both(
    mistakes, minimal
):
    message = mistakes(minimal.replace("length", "lenght").replace("updates: 4", "updates: x"))
    assert [line.split(": ")[1] for line in message] == ["rewards.brevity.type", "ppo.updates"]


def test_with_a_broken_reference_beside_the_missing_plugin_both_are_told(mistakes, minimal):
    message = mistakes(
        minimal.replace("length", "lenght").replace("prompts: {data: r", "prompts: {data: x")
    )
    assert [line.split(": ")[1] for line in message] == ["prompts.data", "rewards.brevity.type"]


def test_a_recipe_of_which_only_plugins_are_missing_is_a_plugin_error_that_tells_all(load, minimal):
    with pytest.raises(PluginError) as caught:
        load(minimal.replace("type: length", "type: a").replace("type: adaptive", "type: b"))
    message = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in message] == [
        "rewards.brevity.type",
        "kl.controller.type",
    ]


def test_the_environment_is_searched_once_however_many_components_there_are(
    write, minimal, monkeypatch
):
    searched = []
    monkeypatch.setattr(
        registry_module, "entry_points", lambda **kw: searched.append(kw) or ENTRY_POINTS(**kw)
    )
    Registry()
    once = len(searched)
    load_recipe(write(nested(minimal)))
    assert len(searched) == 2 * once


ENTRY_POINTS = registry_module.entry_points


# The resolved recipe and its digest


def as_yaml(data):
    """Plain data as text, as a run directory keeps it."""
    out = io.StringIO()
    YAML().dump(data, out)
    return out.getvalue()


def test_a_resolved_recipe_has_every_default_of_sections_and_components(load, minimal):
    resolved = load(nested(minimal)).resolved()
    assert resolved["ppo"]["max_grad_norm"] == 1.0
    assert resolved["rewards"]["brevity"] == {
        "type": "length",
        "weight": 1.0,
        "time_limit_seconds": None,
        "transforms": [],
        "on_none": "skip",
        "gates": None,
        "target_tokens": 20,
    }
    assert resolved["kl"]["controller"] == {
        "type": "adaptive",
        "target": 6.0,
        "unit": "nats_per_response",
        "horizon": 10_000,
        "initial": 0.05,
    }
    assert resolved["rewards"]["better"]["reward"] == {
        "type": "keyword",
        "words": ["good"],
        "per_word": 1.0,
        "at_most": None,
    }
    assert resolved["algorithm"]["advantages"] == {
        "type": "gae",
        "gamma": 1.0,
        "lam": 0.95,
        "bootstrap": False,
    }
    assert resolved["algorithm"]["value_loss"] == {
        "type": "clipped",
        "coefficient": 0.1,
        "clip": 0.2,
    }


def alone(stage):
    """The quickstart with one stage that is not PPO."""
    whole = YAML(typ="safe").load(QUICKSTART.read_text(encoding="utf-8"))
    policy = {"policy": whole["model"]["policy"]}
    kept = {key: whole[key] for key in ("version", "seed", "data", stage, "runtime")}
    return as_yaml(kept | {"model": policy})


@pytest.mark.parametrize("which", ["quickstart", "nested", "sft", "reward_model"])
def test_a_resolved_recipe_loads_again_to_the_same_recipe(load, minimal, which):
    whole = {"quickstart": QUICKSTART.read_text(encoding="utf-8"), "nested": nested(minimal)}
    first = load(whole[which] if which in whole else alone(which))
    second = load(as_yaml(first.resolved()))
    assert second.resolved() == first.resolved()
    assert second.digest == first.digest
    assert second.chosen.keys() == first.chosen.keys()
    assert load(as_yaml(second.resolved())).source == second.source


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "ppo.updates=5",
        "ppo.max_grad_norm=0.3",
        "prompts.first_words=4",
        "rewards.brevity.target_tokens=21",
        "rewards.brevity.weight=2",
        "rewards.better.against=reference",
        "rewards.better.reward.words=[bad]",
        "rewards.better.reward.per_word=2",
        "kl.controller.horizon=3",
        "kl.controller={type: fixed, coefficient: 0.1}",
        "algorithm.advantages={type: gae, lam: 0.9}",
        "algorithm.policy_loss={type: gspo}",
        "algorithm.value_loss.coefficient=0.2",
        "data.reviews.generator.rows=201",
        "losses.ptx={type: ptx, gamma: 0.1, data: reviews}",
    ],
)
def test_another_value_gives_another_digest(load, minimal, override):
    assert load(nested(minimal), override).digest != load(nested(minimal)).digest


@pytest.mark.parametrize(
    "override",
    [
        "seed=0",
        "ppo.updates=4",
        "ppo.max_grad_norm=1e0",
        "rewards.brevity.weight=1",
        "kl.controller.horizon=10000",
        "rewards.better.reward.per_word=1",
        "algorithm.advantages={type: gae}",
        "algorithm.policy_loss.clip=2e-1",
    ],
)
def test_a_default_or_the_same_value_written_in_another_way_gives_the_same_digest(
    load, minimal, override
):
    assert load(nested(minimal), override).digest == load(nested(minimal)).digest


def test_the_order_of_keys_remarks_and_quotes_do_not_change_the_digest(load, minimal):
    lines = minimal.splitlines(keepends=True)
    turned = "".join([lines[9], *lines[3:9], *lines[:3]])
    for old, new in [
        ("{type: length, target_tokens: 20}", "{target_tokens: 20, 'type': length}"),
        ("ppo: {updates: 4}", "# a remark\nppo:\n  updates: 4  # few"),
    ]:
        assert old in turned
        turned = turned.replace(old, new)
    assert load(turned).digest == load(minimal).digest


def test_the_order_of_rewards_changes_the_digest_since_it_changes_the_run(load, minimal):
    # `eos_penalty` with `replace` takes the place of the rewards before it, not of those after it.
    brevity = "  brevity: {type: length, target_tokens: 20}\n"
    ended = "  ended: {type: eos_penalty, penalty: 1.0, mode: replace}\n"
    one, other = (minimal.replace(brevity, both) for both in (brevity + ended, ended + brevity))
    assert load(one).digest != load(other).digest


def test_overrides_apply_in_their_order(load, minimal):
    overrides = ["ppo={updates: 7}", "ppo.max_grad_norm=0.3", "ppo.max_grad_norm=0.4"]
    ppo = load(minimal, *overrides).recipe.ppo
    assert (ppo.updates, ppo.max_grad_norm) == (7, 0.4)
    assert load(minimal, *overrides[::-1]).recipe.ppo.max_grad_norm == 1.0


def test_an_override_can_add_a_named_reward(load, minimal):
    added = ["rewards.polite={type: keyword, words: [please]}", "rewards.polite.weight=0.5"]
    recipe = load(minimal, *added).recipe
    assert list(recipe.rewards) == ["brevity", "polite"]
    assert recipe.rewards["polite"].weight == 0.5


def test_an_override_can_change_one_key_of_a_component_that_is_a_default(load, minimal):
    resolved = load(minimal, "algorithm.advantages.lam=0.9").resolved()
    assert resolved["algorithm"]["advantages"]["lam"] == 0.9
    assert resolved["algorithm"]["advantages"]["gamma"] == 1.0


def test_a_recipe_keeps_its_own_text(load, minimal):
    assert load(f"# why\n{minimal}").source == f"# why\n{minimal}"


def test_a_recipe_is_validated_without_importing_torch():
    code = (
        "import sys; from pathlib import Path; from rlframe.recipe import load_recipe; "
        "load_recipe(Path(sys.argv[1])); "
        "print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(QUICKSTART)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_needs_of_an_estimator_say_whether_there_is_a_critic(load, minimal, registry):
    from rlframe.api import AdvantageEstimator, Needs, PluginConfig

    class Mine(AdvantageEstimator[PluginConfig]):
        @classmethod
        def needs(cls, config):
            return Needs(samples_per_prompt=2)

    registry.add("advantage_estimators", "with_plain_needs", Mine)
    with pytest.raises(PluginError, match=r"instead of EstimatorNeeds\(\.\.\.\)"):
        load(minimal, "algorithm.advantages={type: with_plain_needs}")
