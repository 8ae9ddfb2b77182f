"""The house rules that a reader should not have to check by eye."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from rlframe.recipe.schema import Recipe
from rlframe.stage_table import STAGES, imported

ROOT = Path(__file__).parent.parent / "rlframe"

LAYERS = (  # an import points to an earlier line, or stays inside its own package
    {"redaction"},
    {"errors", "stage_table", "text", "types"},
    {"batches"},
    {"functional"},
    {"api"},
    {"registry"},
    {"recipe"},
    {"builtin", "models", "rollout", "data", "distributed", "planning"},
    {"runs"},
    {"reports"},
    {"engine"},
    {"stages"},
    {"compose", "convert"},
    {"testing"},
    {"cli"},
)
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
FILES = sorted(ROOT.rglob("*.py"))


def package(path: Path) -> str:
    """The part of rlframe that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether for annotations alone) of each import, wherever it stands."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module), id(node) in typing_only


def bodies(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines without the docstring) of each function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_and_siblings_do_not_meet(path: Path) -> None:
    here = package(path)
    if here in ("__init__", "__main__"):
        return
    for name, _ in imports(path):
        if name.startswith("rlframe."):
            there = name.split(".")[1]
            below = RANK[there] < RANK[here]
            assert there == here or below, f"{here} may not import {there}"


def test_the_maths_imports_torch_and_no_other_library() -> None:
    allowed = {"torch", "rlframe", "__future__", "typing", "collections", "math"}
    for path in (ROOT / "functional").glob("*.py"):
        for name, _ in imports(path):
            assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
            own = ("rlframe.functional", "rlframe.batches")
            assert not name.startswith("rlframe") or name.startswith(own), f"{path.name}: {name}"


def test_builtins_import_what_a_third_party_may() -> None:
    contract = (
        "rlframe.api",
        "rlframe.types",
        "rlframe.batches",
        "rlframe.functional",
        "rlframe.errors",
    )
    allowed = (*contract, "rlframe.builtin.")  # a distribution has modules of its own
    for path in (ROOT / "builtin").glob("*.py"):
        for name, _ in imports(path):
            assert not name.startswith("rlframe") or name.startswith(allowed), (
                f"{path.name}: {name}"
            )


@pytest.mark.parametrize(
    ("library", "home"),
    [("pluggy", "registry"), ("importlib.metadata", "registry"), ("accelerate", "distributed"),
     ("deepspeed", "distributed"), ("torch.distributed", "distributed"), ("peft", "models")],
)  # fmt: skip
def test_some_libraries_have_one_home(library: str, home: str) -> None:
    exceptions = {
        ("importlib.metadata", "runs"),  # versions for the manifest
        ("importlib.metadata", "reports"),  # and for bug reports, where a library may be missing
        ("pluggy", "api"),  # the markers of hooks
    }
    for path in FILES:
        if package(path) != home and (library, package(path)) not in exceptions:
            names = [name for name, _ in imports(path)]
            assert not any(n == library or n.startswith(library + ".") for n in names), path


def test_models_and_tokenizers_are_opened_in_one_place() -> None:
    """Which reads safetensors alone, runs no code of a folder, and refuses what is not whole."""
    opening = {"from_pretrained", "from_config"}
    places = {path.relative_to(ROOT).as_posix() for path in FILES if opening & called(path)}
    assert places == {"models/pretrained.py"}


def test_whatever_opens_a_model_or_a_tokenizer_forbids_its_code() -> None:
    tree = ast.parse((ROOT / "models" / "pretrained.py").read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    opening = [
        {key.arg: ast.unparse(key.value) for key in call.keywords}
        for call in calls
        if getattr(call.func, "attr", "") in ("from_pretrained", "from_config")
    ]
    assert len(opening) >= 5
    for options in opening:
        assert options.get("trust_remote_code") == "False" or "state_dict" in options
        assert "dtype" not in options or options.get("use_safetensors") == "True"


def called(path: Path) -> set[str]:
    """Names of the methods that a file calls."""
    return {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }


@pytest.mark.parametrize(
    "part",
    [
        "errors.py",
        "types.py",
        "batches.py",
        "api",
        "registry",
        "recipe",
        "reports",
        "convert",
        "cli",
    ],
)
def test_what_reads_recipes_does_not_import_torch_at_the_top(part: str) -> None:
    paths = [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))
    heavy = ("torch", "transformers", "rlframe.functional", "rlframe.engine", "rlframe.compose")
    for path in paths:
        top = ast.parse(path.read_text()).body
        for node in top:
            if isinstance(node, ast.Import | ast.ImportFrom):
                text = ast.unparse(node)
                assert not any(f" {name}" in text for name in heavy), f"{path.name}: {text}"


def test_only_the_composition_root_and_the_command_line_know_the_recipe() -> None:
    """A stage's file knows the class of its own section, as a component knows its config."""
    sections = {"FineTuning", *(sections_of_stages())}
    for path in FILES:
        if package(path) in ("compose", "convert", "cli", "recipe"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom) and "rlframe.recipe" in ast.unparse(
                node
            ):
                assert package(path) == "stages", path
                assert {alias.name for alias in node.names} <= sections, path


def sections_of_stages() -> set[str]:
    """The names of the classes of the stages' sections."""
    fields = Recipe.model_fields
    return {get_args(fields[stage.name].annotation)[0].__name__ for stage in STAGES}


def test_nothing_but_the_table_lists_the_stages() -> None:
    """Two of their names in one tuple, list, set or dictionary would be another list of them."""
    names = {stage.name for stage in STAGES}
    exceptions = {"stage_table.py", "recorded.py"}  # the latter holds a whole recipe
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
                parts = node.keys if isinstance(node, ast.Dict) else node.elts
                inner = [word for part in parts if part is not None for word in ast.walk(part)]
                texts = {str(word.value) for word in inner if isinstance(word, ast.Constant)}
                message = {text.removeprefix("stage:") for text in texts} & names
                assert len(message) < 2 or path.name in exceptions, (
                    f"{path}:{node.lineno}: {message}"
                )


def test_the_table_is_in_the_order_of_the_recipe_and_names_what_there_is() -> None:
    keys = [key for key in Recipe.model_fields if key in {stage.name for stage in STAGES}]
    assert keys == [stage.name for stage in STAGES]
    for stage in STAGES:
        for text in filter(None, (stage.check, stage.run)):
            assert callable(imported(text)), text


def test_one_module_writes_text_and_one_function_cuts_lines() -> None:
    """What a terminal would obey, and what ends a line, is decided in `text.py`."""
    writing = {"print", "echo", "secho", "Console", "Table", "splitlines"}
    streams = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
    allowed = {
        ("text.py", "Console"),  # makes consoles and tables that take text for text
        ("text.py", "Table"),
        ("text.py", "write"),  # writes to a stream
        ("display.py", "Table"),  # of figures, and `cell`s
        ("display.py", "print"),  # renders what `cell` and `table` have made
        ("check.py", "print"),
        ("plugins.py", "print"),
        ("describe.py", "print"),
        ("launch.py", "write"),  # the escape that shows the cursor
    }
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            last = name.rpartition(".")[2]
            found = last if last in writing else None
            if last in ("write", "writelines") and name.rpartition(".")[0] in {*streams, "stream"}:
                found = "write"
            assert found is None or (path.name, found) in allowed, f"{path}:{node.lineno}: {name}"


def test_no_function_is_longer_than_a_screen() -> None:
    long = {f"{p.name}:{n}": k for p in FILES for n, k in bodies(p) if k > 60}
    assert not long


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_the_loop_reads_in_one_look() -> None:
    sizes = dict(bodies(ROOT / "engine" / "ppo.py"))
    assert sizes["train"] <= 40


def test_no_exception_is_swallowed() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert not all(isinstance(s, ast.Pass) for s in node.body), f"{path}:{node.lineno}"


def test_tensors_are_reduced_with_their_mask() -> None:
    """`x.mean()` on [B, T] counts padding; reducers live in functional/masked.py."""
    for part in ("engine", "functional"):
        for path in (ROOT / part).glob("*.py"):
            if path.name != "masked.py":
                assert ".mean()" not in path.read_text(), path
