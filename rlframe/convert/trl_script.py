"""The options in a Python script for TRL: arguments of the calls that matter, found in its syntax tree.

The script is never run. A value is known if it is a literal, a name that the script binds once to a
literal, or an argument of the PPOConfig that it reads back.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from rlframe.convert.option import NOT_LITERAL, Written
from rlframe.errors import RecipeError

_CONFIGS = ("PPOConfig", "PPOv2Config")
_LOADERS = {
    "AutoModelForCausalLM": "sft_model_path",
    "AutoModelForCausalLMWithValueHead": "sft_model_path",
    "AutoModelForSequenceClassification": "reward_model_path",
}
"""Class whose `from_pretrained` is called -> the option that its first argument is."""

_ROLES = {
    "model": "sft_model_path",
    "policy": "sft_model_path",
    "ref_model": "ref_model_path",
    "ref_policy": "ref_model_path",
    "reward_model": "reward_model_path",
    "value_model": "value_model_path",
}
"""Argument of PPOTrainer -> the option that the model in it is."""

_DATASET = ("dataset_name", "dataset_config")
_LORA = {"r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout",
         "target_modules": "lora_target_modules",
             "modules_to_save": "lora_modules_to_save"}  # fmt: skip


def options(text: str) -> list[Written]:
    """The options of a script, in its order.

    Raises:
      RecipeError: it is not Python, or does not make one PPOConfig.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise RecipeError(f"line {error.lineno}: it is not valid Python: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"it is not valid Python: {error}") from error
    config = _config(tree)
    found = [*_Script(tree, config).options()]
    return sorted(found, key=lambda option: option.line)


def _config(tree: ast.Module) -> ast.Call:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    configs = [call for call in calls if _name(call.func) in _CONFIGS]
    if len(configs) == 1:
        return configs[0]
    if configs:
        numbers = ", ".join(str(call.lineno) for call in configs)
        raise RecipeError(
            f"it calls PPOConfig several times, on lines {numbers}. Keep the one that is to be "
            "converted in a file of its own"
        )
    others = sorted(
        {_name(c.func) for c in calls if _name(c.func).endswith("Config")} - {"LoraConfig"}
    )
    other = f" It calls {', '.join(others)}, and only PPO is converted." if others else ""
    raise RecipeError(
        f"no call of PPOConfig(...) is in it.{other} If the script takes its options from the command "
        "line, convert the shell script or command line that starts it"
    )


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


class _Script:
    """A script and what is known of its names."""

    def __init__(self, tree: ast.Module, config: ast.Call) -> None:
        self._tree = tree
        self._config = config
        self._bound: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bound.setdefault(ast.unparse(target), []).append(node.value)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                self._bound.setdefault(ast.unparse(node.target), []).append(node.value)
            elif isinstance(node, ast.AugAssign):
                self._bound.setdefault(ast.unparse(node.target), []).extend([node.value] * 2)
        self._roles = self._models()

    def options(self) -> Iterator[Written]:
        yield from self._arguments(self._config, ("exp_name",), {}, "")
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call):
                yield from self._call(node)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                sampling = _name(node.targets[0]).endswith("generation_kwargs")
                yield from self._generation(node.value) if sampling else ()

    def _call(self, call: ast.Call) -> Iterator[Written]:
        name = _name(call.func)
        if name == "load_dataset":
            renamed = {
                "path": "dataset_name",
                "name": "dataset_config",
                "split": "dataset_train_split",
            }
            yield from self._arguments(call, _DATASET, renamed, "load_dataset.")
        elif name == "LoraConfig":
            yield from self._lora(call)
        elif name == "pipeline":
            yield from self._arguments(
                call,
                ("pipeline.task", "reward_model_path"),
                {"model": "reward_model_path"},
                "pipeline.",
            )
        elif name == "from_pretrained":
            yield from self._loaded(call)

    def _loaded(self, call: ast.Call) -> Iterator[Written]:
        loader = _name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if loader in _LOADERS:
            role = self._roles.get(id(call), _LOADERS[loader])
            first = {"pretrained_model_name_or_path": role}
            yield from self._arguments(call, (role,), first, "from_pretrained.")

    def _lora(self, call: ast.Call) -> Iterator[Written]:
        yield Written("use_peft", True, call.lineno, "LoraConfig(...)")
        yield from self._arguments(call, (), _LORA, "LoraConfig.")

    def _generation(self, values: ast.Dict) -> Iterator[Written]:
        for key, value in zip(values.keys, values.values, strict=True):
            name = str(key.value) if isinstance(key, ast.Constant) else "**"
            text = f"{name}: {_source(value)}"
            yield Written(f"generation_kwargs.{name}", self._value(value), value.lineno, text)

    def _arguments(
        self, call: ast.Call, positions: tuple[str, ...], renamed: dict[str, str], front: str
    ) -> Iterator[Written]:
        """The arguments of a call as options.

        Args:
          call: the call.
          positions: what the positional arguments are.
          renamed: keyword -> option; others are called `front` and the keyword.
          front: of the names of other arguments.
        """
        shown = f"{_name(call.func)}: " if front else ""
        for place, value in enumerate(call.args):
            name = positions[place] if place < len(positions) else f"{front}argument {place + 1}"
            yield Written(name, self._value(value), value.lineno, f"{shown}{_source(value)}")
        for keyword in call.keywords:
            name = "**" if keyword.arg is None else keyword.arg
            option = renamed.get(name, f"{front}{name}")
            source = _source(keyword.value)
            text = f"**{source}" if name == "**" else f"{name}={source}"
            known = NOT_LITERAL if name == "**" else self._value(keyword.value)
            yield Written(option, known, keyword.value.lineno, f"{shown}{text}")

    def _value(self, node: ast.expr, depth: int = 0) -> Any:
        """What an expression is, if the script says so itself."""
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            known = self._bound.get(ast.unparse(node), [])
        if depth > 10:
            return NOT_LITERAL
        if isinstance(node, ast.Attribute) and not known:
            owner = self._bound.get(ast.unparse(node.value), [])
            if owner == [self._config]:
                known = [key.value for key in self._config.keywords if key.arg == node.attr]
        return self._value(known[0], depth + 1) if len(known) == 1 else NOT_LITERAL

    def _models(self) -> dict[int, str]:
        """Call of `from_pretrained` -> the option that its model is, as PPOTrainer takes it."""
        given = (
            keyword
            for call in ast.walk(self._tree)
            if isinstance(call, ast.Call) and _name(call.func).endswith("PPOTrainer")
            for keyword in call.keywords
        )
        roles: dict[int, str] = {}
        for keyword in given:
            for value in self._bound.get(ast.unparse(keyword.value), []):
                if keyword.arg in _ROLES:
                    roles.setdefault(id(value), _ROLES[keyword.arg])
        return roles


def _source(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 80 else f"{text[:77]}..."
