"""The documentation names everything there is, and its code runs."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from pydantic import BaseModel, TypeAdapter
from ruamel.yaml import YAML

from rlframe import api
from rlframe.api import (
    PluginConfig,
    PolicyLossBatch,
    ValueLossBatch,
    events,
    reward_from_function,
)
from rlframe.api.component import Instance, Section
from rlframe.api.events import HeldoutEvaluated, Metrics, ScoredResponse
from rlframe.api.functions import GIVEN
from rlframe.engine.streams import token_batch
from rlframe.recipe import data, schema
from rlframe.recipe.schema import Recipe
from rlframe.registry.discovery import KINDS, Registry
from rlframe.registry.relay import Relay
from rlframe.testing import Subject, check_component, credit_batch
from rlframe.testing.world import tiny_context, tiny_policy
from rlframe.types import StopReason, TokenExample

ROOT = Path(__file__).parent.parent
MASK = torch.tensor([[True, True, False]])
SECTIONS = [
    model
    for module in (schema, data)
    for model in vars(module).values()
    if isinstance(model, type) and issubclass(model, Section) and model is not Section
]


def read(name: str) -> str:
    return (ROOT / name).read_text()


def snippets(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", read(name), re.DOTALL)


def run_snippet(number: int) -> dict[str, Any]:
    """What a piece of Python in the guide defines, run as it would be in a file of its own."""
    space: dict[str, Any] = {}
    source = snippets("docs/plugins.md", "python")[number]
    exec(compile(source, "guide", "exec", dont_inherit=True), space)  # the documentation is ours
    return space


@pytest.mark.parametrize("section", SECTIONS, ids=lambda model: model.__name__)
def test_every_key_of_a_recipe_is_documented(section: type[BaseModel]) -> None:
    text = read("docs/recipe.md")
    for name in section.model_fields:
        assert f"| `{name}` |" in text, name


def rows_of(text: str) -> Iterator[tuple[str, str]]:
    """(key, default) of each row of the tables of keys."""
    for cells in re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|", text, re.MULTILINE):
        yield cells[0], cells[2].strip()


@pytest.mark.parametrize("offer", [o for k in KINDS for o in Registry().offers(k)], ids=str)
def test_the_defaults_of_built_in_components_are_those_of_the_page(offer: Any) -> None:
    if offer.distribution != "rlframe":
        pytest.skip("not of rlframe")
    text, fields = (
        read("docs/recipe.md"),
        Registry().load(offer.kind, offer.name).Config.model_fields,
    )
    begin = text.index(f"### `{offer.name}` ({KINDS[offer.kind][1]})")
    written = dict(rows_of(text[begin : text.find("\n### ", begin + 1)]))
    for key, field in fields.items():
        if field.is_required():
            assert written[key] == "required", key
            continue
        default: Any = YAML(typ="safe", pure=True).load(written[key].strip("`"))
        given = TypeAdapter(Any).dump_python(field.default, mode="json")
        assert default == given, (key, default, given)


@pytest.mark.parametrize("offer", [o for k in KINDS for o in Registry().offers(k)], ids=str)
def test_every_built_in_component_and_its_keys_are_documented(offer: Any) -> None:
    if offer.distribution != "rlframe":
        pytest.skip("not of rlframe")
    text = read("docs/recipe.md")
    begin = text.index(f"### `{offer.name}` ({KINDS[offer.kind][1]})")
    end = text.find("\n### ", begin + 1)
    for key in Registry().load(offer.kind, offer.name).Config.model_fields:
        assert f"| `{key}` |" in text[begin:end], key


def test_the_readme_lists_what_is_in_the_box() -> None:
    text = read("README.md")
    for kind in KINDS:
        for offer in Registry().offers(kind):
            assert offer.distribution != "rlframe" or f"`{offer.name}`" in text


def test_the_recipe_of_the_readme_has_valid_keys() -> None:
    (source,) = snippets("README.md", "yaml")
    data = YAML(typ="safe").load(source)
    assert Recipe.model_validate(data).model_fields_set == set(data)


def commands() -> list[list[str]]:
    """Every `rlframe` command in a block of code, as words, without what brackets mark as optional."""
    pages = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").iterdir()))]
    blocks = [b for page in pages for b in re.findall(r"```\w*\n(.*?)```", read(page), re.S)]
    lines = [line for block in blocks for line in block.splitlines()]
    found = [line for line in lines if re.match(r"(\S*/)?rlframe ", line)]
    return [shlex.split(re.sub(r"[\[\]]", "", line), comments=True)[1:] for line in found]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_of_the_documentation_is_one_with_those_options(words: list[str]) -> None:
    from rlframe.cli.main import COMMANDS

    name, *rest = words
    assert name in COMMANDS
    module = import_module(f"rlframe.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer()
        app.command(name)(getattr(module, name))
    command: Any = typer.main.get_command(app)
    if hasattr(module, "app"):
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_the_hook_plugin_and_the_generator_of_the_guide_do_what_they_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    space = run_snippet(8) | run_snippet(9)
    sums = space["Sums"]
    rows = sums.rows(sums.Config(rows=5, seed=3))
    assert rows == sums.rows(sums.Config(rows=5, seed=3)) != sums.rows(sums.Config(rows=5, seed=4))
    assert all(sum(map(int, row["prompt"][:-1].split("+"))) == int(row["answer"]) for row in rows)
    relay = Relay([Instance("watch", "stopwatch", space["Stopwatch"](PluginConfig(), None))])

    class Provider:
        name = "judge"

        def score(self, batch: Any) -> list[float]:
            return [1.0]

    assert relay.hook.rlframe_score(provider=Provider(), batch=None) == [1.0]
    relay.tell("metrics", Metrics(3, {"objective/scores": 0.5}))
    answer = ScoredResponse(0, 0, "why?", "so", StopReason.EOS, 1.5, {"judge": 1.5})
    relay.tell("heldout_evaluated", HeldoutEvaluated("before", 0, (answer,)))
    printed = capsys.readouterr().out
    assert re.fullmatch(r"judge [\d.e-]+\n3 0.5\nbefore 1.5 why\? so\n", printed)
    assert relay.errors == 0


@pytest.mark.parametrize("number", range(10))
def test_the_plugins_of_the_guide_are_plugins(number: int) -> None:
    from rlframe.api import Component

    space = run_snippet(number)
    made = [
        value
        for value in space.values()
        if isinstance(value, type)
        and issubclass(value, Component)
        and value.__module__ == "builtins"
    ]
    assert len(made) == 1
    registry = Registry()
    kind = next(k for k, (base, _) in KINDS.items() if issubclass(made[0], base))
    registry.add(kind, "from_the_guide", made[0])
    assert registry.load(kind, "from_the_guide") is made[0]


def test_the_function_of_the_guide_is_a_reward_with_a_key() -> None:
    texts = snippets("docs/plugins.md", "python")
    (number,) = [k for k, text in enumerate(texts) if "def brief" in text]
    component = reward_from_function(run_snippet(number)["brief"])
    assert set(component.Config.model_fields) == {"target"}
    wanted = {*GIVEN, "**kwargs"}
    rows = [line for line in read("docs/plugins.md").splitlines() if line.startswith("| `")]
    assert wanted <= {word for row in rows for word in re.findall(r"`([\w*]+)", row)}


def test_the_loss_of_the_guide_is_the_cross_entropy_with_the_teacher() -> None:
    space, context, policy = run_snippet(4), tiny_context(), tiny_policy()
    loss = space["Distillation"](space["DistillationConfig"](teacher="stage:sft"), context)
    batch = token_batch(
        [TokenExample((1, 5, 9, 7, 2), 2), TokenExample((1, 6, 2), 1)], device=torch.device("cpu")
    )
    logits = [model(batch.tokens[:, :-1]).logits for model in (loss.teacher, policy.model)]
    teacher, ours = (x[batch.mask].log_softmax(-1) for x in logits)
    term = loss.loss(policy, batch)
    torch.testing.assert_close(term.total, -(teacher.double().exp() * ours).sum())
    assert term.count == 5
    term.total.backward()
    assert all(weight.grad is None for weight in loss.teacher.parameters())
    assert any(weight.grad is not None for weight in policy.parameters())


def test_the_streams_of_the_guide_keep_their_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(9)))
    module = ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", module)  # where pickle looks for the config
    for text in snippets("docs/plugins.md", "python"):
        if "class Lines" in text or "class Rows" in text:
            exec(compile(text, "guide", "exec", dont_inherit=True), vars(module))
    lines: Any = vars(module)["PTXFromFile"]

    class RowsFromFile(lines):  # type: ignore[misc]
        def examples(self) -> Any:
            from datasets import load_dataset

            files = {"data_files": self.config.file, "split": "train"}
            dataset = load_dataset("json", streaming=True, **files)
            return vars(module)["Rows"](dataset, self.context.tokenize)

    tokens = []
    for component in (lines, RowsFromFile):
        subject: Any = Subject(component, config={"file": str(file)})
        results = {r.check: r for r in check_component(subject)}
        assert [r.message for r in results.values() if r.outcome != "ok"] == []
        assert "where the first pass of 9 ends" in results["cursor_resumes"].message
        tokens.append([example.ids for example in subject.build().examples()])
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == 9


def test_the_advantage_estimator_of_the_guide_sums_what_came_after() -> None:
    space = run_snippet(5)
    estimator = space["RewardToGo"](None, None)
    credit = estimator.estimate(
        credit_batch([[1.0, 2.0, 9.0]], values=[[0.5, 0.5, 7.0]], mask=MASK)
    )
    assert credit.returns.tolist() == [[3, 2, 0]]
    assert credit.advantages.tolist() == [[2.5, 1.5, 0]]


def test_the_policy_loss_of_the_guide_rewards_advantages_and_entropy() -> None:
    space = run_snippet(6)
    loss = space["EntropyBonus"](space["EntropyBonusConfig"](bonus=0.5), None)
    logprobs = torch.tensor([[-1.0, -2.0, -4.0]], requires_grad=True)
    advantages, entropy = torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[1.0, 2.0, 4.0]])
    term = loss.loss(PolicyLossBatch(logprobs, logprobs.detach(), advantages, entropy, MASK))
    assert term.loss[MASK].tolist() == [0.5, -3]
    assert term.clipped is None


def test_the_value_loss_of_the_guide_is_squared_up_to_delta_and_linear_beyond() -> None:
    space = run_snippet(7)
    loss = space["Huber"](space["HuberConfig"](delta=2.0), None)
    values = torch.tensor([[1.0, 5.0, 9.0]], requires_grad=True)
    term = loss.loss(ValueLossBatch(values, values.detach(), torch.zeros(1, 3), MASK))
    assert term.loss[MASK].tolist() == [0.5, 8]
    assert term.clipped is not None
    assert term.clipped[MASK].tolist() == [False, True]


def test_the_entry_points_of_the_guide_are_in_known_groups() -> None:
    (source,) = snippets("docs/plugins.md", "toml")
    groups = tomllib.loads(source)["project"]["entry-points"]
    assert {group.removeprefix("rlframe.") for group in groups} == set(KINDS)


def test_every_hook_is_documented_with_its_arguments() -> None:
    from rlframe.api.spec import Specification
    from rlframe.registry.lint import HOOKS

    rows = {
        row.split("|")[1].strip(" `"): row
        for row in (ROOT / "docs" / "plugins.md").read_text().splitlines()
        if row.startswith("| `rlframe_")
    }
    assert set(rows) == set(HOOKS)
    for name in HOOKS:
        code = getattr(Specification, name).__code__
        for argument in code.co_varnames[1 : code.co_argcount]:
            assert f"`{argument}`" in rows[name], (name, argument)


def test_every_exit_code_is_in_the_readme() -> None:
    from rlframe.cli.main import INTERRUPTED
    from rlframe.errors import PluginError, RecipeError, RunError, SetupError

    (expected,) = re.findall(
        r"The command ends with exit code(.*?)\n\n", read("README.md"), flags=re.S
    )
    numbers = {int(found) for found in re.findall(r"\b\d+\b", expected)}
    own = {error.exit_code for error in (RunError, RecipeError, PluginError, SetupError)}
    assert numbers == {0, 2, INTERRUPTED} | own


def test_every_base_class_of_the_contract_is_in_the_guide() -> None:
    guide = read("docs/plugins.md")
    for base, _ in KINDS.values():
        assert f"({base.__name__}[" in guide, base.__name__


def reference(page: str) -> list[str]:
    """The names whose docstrings the site shows on a page."""
    return re.findall(r"^:::(.*)$", read(f"docs/{page}"), re.M)


def test_every_name_of_the_contract_is_in_the_reference_once_and_nothing_else_is() -> None:
    assert sorted(reference("api.md")) == sorted(f" rlframe.api.{name}" for name in api.__all__)


def test_the_hooks_and_every_event_are_in_the_reference_once() -> None:
    names = [n for n, v in vars(events).items() if getattr(v, "__module__", "") == events.__name__]
    shown = reference("hooks.md")
    assert len(shown) == len(set(shown))
    assert set(shown) >= {
        " rlframe.api.spec.Specification",
        *(f" {events.__name__}.{n}" for n in names),
    }


def pages(navigation: Any) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    found = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(pages(YAML(typ="safe").load(read("mkdocs.yml"))["nav"])) == sorted(found)


def definitions(body: list[ast.stmt], front: str = "") -> Iterator[tuple[str, bool]]:
    """(name, whether it has a docstring) of each public class, member and value of a module."""
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                documented = bool(ast.get_docstring(node))
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                documented = text and isinstance(after.value.value, str)
            case _:
                continue
        if not name.startswith("_") and name != "model_config":  # which is pydantic's
            yield f"{front}{name}", documented
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{front}{name}.")


DEFINITIONS = {
    name: documented
    for path in [
        *sorted((ROOT / "rlframe" / "api").glob("*.py")),
        *(ROOT / "rlframe" / name for name in ("types.py", "batches.py", "errors.py")),
    ]
    for name, documented in definitions(ast.parse(path.read_text()).body)
}


@pytest.mark.parametrize("path", reference("api.md") + reference("hooks.md"), ids=str.strip)
def test_whatever_the_reference_shows_has_a_docstring_and_so_have_its_members(path: str) -> None:
    module, _, name = path.strip().rpartition(".")
    value = getattr(import_module(module), name)
    classes = value.__mro__ if isinstance(value, type) else ()
    members = [n for n in DEFINITIONS if n == name or n.startswith(f"{name}.")]
    assert name in members
    for member in members:  # one that overrides another may leave its words to that
        last = member.rpartition(".")[2]
        inherited = any(DEFINITIONS.get(f"{owner.__name__}.{last}") for owner in classes)
        assert DEFINITIONS[member] or inherited, member
