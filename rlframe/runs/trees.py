"""Nested state as two files: safetensors for the tensors, JSON for the rest; nothing is pickled.

A tree is made of dicts with str keys, lists, None, bool, int, float, str and tensors. What comes back
is what was written, bit for bit; what could not come back is refused.

In the JSON, {"$tensor": "/state/weight/step"} stands for a tensor, named by its JSON pointer
(RFC 6901), and {"$float": "7ff0000000000000"} for a float that is not finite, by its bits. A "$" that
begins a key of the tree's own is doubled.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from rlframe.errors import RunError

# safetensors has no name for complex128, int4 and others: those are written as their bytes.
_NAMED = {
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip


def save_tree(path: Path, tree: Any) -> None:
    """Write `<path>.safetensors` and `<path>.json`.

    Args:
      path: without a suffix; its directory exists.
      tree: tensors of any dtype, shape, stride and device. Those that share memory are written each for
        itself.

    Raises:
      TypeError: something else than a tree is made of, such as a tuple or a key that is no str; its
        place is named, and no file is written.
      ValueError: a str that is not Unicode text (a lone surrogate).
    """
    writer = _Writer()
    text = json.dumps(writer.node(tree, ""), ensure_ascii=False, indent=2)
    save_file(writer.tensors, _with(path, ".safetensors"))
    _with(path, ".json").write_text(text + "\n", encoding="utf-8")


def check_tree(tree: Any) -> None:
    """Make sure that `save_tree` could write it; raises what that raises."""
    _Writer().node(tree, "")


def load_tree(path: Path) -> Any:
    """What `save_tree` wrote. Tensors come back contiguous, on the CPU, in memory of their own.

    Raises:
      RunError: a file is missing, or is not what `save_tree` wrote.
    """
    try:
        # Copies: it gives views of the mapped file, which are not aligned as complex128 has to be, and
        # which kill the process if they are read when the file is gone from a network drive.
        mapped = load_file(_with(path, ".safetensors"))
        tensors = {name: tensor.clone() for name, tensor in mapped.items()}
        return _read(json.loads(_with(path, ".json").read_text(encoding="utf-8")), tensors)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: cannot be read: {error!r}. Were .json and .safetensors written together?"
        ) from error


def flat_optimizer(optimizer: Optimizer, names: Mapping[str, Parameter]) -> dict[str, Any]:
    """The state of an optimizer, by the names of the parameters. Tensors are the optimizer's own.

    Args:
      optimizer: any of torch's.
      names: of every parameter of the optimizer, as `model.named_parameters()` gives them; where a
        parameter has several names, the first counts.

    Returns:
      {"state": {name: {"step": ..., "exp_avg": ..., ...}}, "groups": [{"lr": ..., "names": [...],
      "shapes": [...]}]}, a tree. How a step is computed (foreach, fused, ...) is not state.

    Raises:
      ValueError: a parameter of the optimizer has no name.
    """
    ours = _names(optimizer, names)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        "state": {ours[p]: dict(optimizer.state[p]) for p in parameters if p in optimizer.state},
        "groups": [
            {key: _plain(value) for key, value in group.items() if key not in _NOT_STATE}
            | {
                "names": [ours[p] for p in group["params"]],
                "shapes": [list(p.shape) for p in group["params"]],
            }
            for group in optimizer.param_groups
        ],
    }


def load_flat_optimizer(
    optimizer: Optimizer, names: Mapping[str, Parameter], tree: Mapping[str, Any]
) -> None:
    """Put back what `flat_optimizer` gave; the next step is the one that would have come.

    Args:
      optimizer: over parameters of the same names, groups and shapes, in any order. It gets copies, on
        the devices of its parameters. Untouched if the tree is refused.
      names: as for `flat_optimizer`.
      tree: as `flat_optimizer` returned it.

    Raises:
      RunError: the tree is of other parameters; the first is named.
      ValueError: a parameter of the optimizer has no name.
    """
    ours = _names(optimizer, names)
    _refuse_other_parameters(optimizer, ours, tree["groups"])
    optimizer.state.clear()
    for group, saved in zip(optimizer.param_groups, tree["groups"], strict=True):
        settings = {key: value for key, value in saved.items() if key not in ("names", "shapes")}
        group.update({key: _setting(value, group.get(key)) for key, value in settings.items()})
        on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            state = tree["state"].get(ours[parameter])
            if state is not None:
                optimizer.state[parameter] = {
                    # torch keeps the count of steps on the CPU unless the kernel reads it
                    key: _placed(value, parameter, moved=key != "step" or on_device)
                    for key, value in state.items()
                }


# ---- trees


def _with(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)  # with_suffix would cut "step.10"


class _Writer:
    """Turns a tree into JSON, and sets its tensors aside."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._memory: set[int] = set()

    def node(self, node: Any, place: str) -> Any:
        """The node as JSON has it."""
        kind = type(node)  # compared exactly: a subclass would come back as its base
        if node is None or kind in (bool, int):
            return node
        if kind is str:
            return _text(node, place)
        if kind is float:
            return node if math.isfinite(node) else {"$float": struct.pack(">d", node).hex()}
        if kind in (Tensor, Parameter):
            return self._tensor(node, place)
        if kind is list:
            return [self.node(inner, f"{place}/{i}") for i, inner in enumerate(node)]
        if kind is dict:
            return {
                _key(key, place): self.node(inner, f"{place}/{_escaped(key)}")
                for key, inner in node.items()
            }
        raise TypeError(
            f"{_named(place)}: a {kind.__qualname__} cannot be saved: a tree is made of dicts, lists, "
            "None, bool, int, float, str and plain tensors"
        )

    def _tensor(self, tensor: Tensor, place: str) -> dict[str, Any]:
        odd = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested
        if odd or tensor.is_meta:
            raise TypeError(
                f"{_named(place)}: a sparse, quantized, nested or meta tensor cannot be saved"
            )
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        reference: dict[str, Any] = {"$tensor": place}
        if plain.dtype not in _NAMED:
            dtype = str(plain.dtype).removeprefix("torch.")
            reference |= {"dtype": dtype, "shape": list(plain.shape)}
            # of one element or none, any stride counts as contiguous, and `view` refuses it
            plain = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)
        memory = plain.untyped_storage().data_ptr()
        self.tensors[place] = plain.clone() if memory in self._memory else plain
        self._memory.add(memory)
        return reference


def _named(place: str) -> str:
    return place or "the tree"


def _key(key: Any, place: str) -> str:
    if type(key) is not str:
        raise TypeError(
            f"{_named(place)}: the key {key!r} is no str, and would not come back as it is"
        )
    return "$" * key.startswith("$") + _text(key, place)


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _text(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{_named(place)}: {text!r} is not Unicode text: {error}") from error
    return text


def _read(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_read(inner, tensors) for inner in node]
    if not isinstance(node, dict):
        return node
    if "$float" in node:
        return struct.unpack(">d", bytes.fromhex(node["$float"]))[0]
    if "$tensor" in node:
        tensor = tensors[node["$tensor"]]
        if "dtype" in node:
            tensor = tensor.view(getattr(torch, node["dtype"])).reshape(node["shape"])
        return tensor
    return {
        key[1:] if key.startswith("$$") else key: _read(inner, tensors)
        for key, inner in node.items()
    }


# ---- optimizers

# The first two are the names; the others say how a step is computed, which is the machine's business.
_NOT_STATE = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}


def _names(optimizer: Optimizer, names: Mapping[str, Parameter]) -> dict[Parameter, str]:
    ours = {parameter: name for name, parameter in reversed(list(names.items()))}
    for i, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in ours:
                raise ValueError(
                    f"group {i} of the optimizer has a parameter of shape {list(parameter.shape)} "
                    "that has no name"
                )
    return ours


def _refuse_other_parameters(
    optimizer: Optimizer, ours: Mapping[Parameter, str], groups: list[dict[str, Any]]
) -> None:
    have = [{ours[p]: list(p.shape) for p in g["params"]} for g in optimizer.param_groups]
    saved = [dict(zip(g["names"], g["shapes"], strict=True)) for g in groups]
    where_saved = {
        name: (i, shape) for i, group in enumerate(saved) for name, shape in group.items()
    }
    where = {name: (i, shape) for i, group in enumerate(have) for name, shape in group.items()}
    for name in [*where, *where_saved]:
        if where.get(name) != where_saved.get(name):
            raise RunError(
                f"the saved optimizer state is of another model: parameter {name!r} is "
                f"{_described(where_saved.get(name))} there and {_described(where.get(name))} here. "
                "Resume with the recipe that the run began with."
            )
    if len(have) != len(saved):
        raise RunError(
            f"the saved optimizer state has {len(saved)} groups, and this optimizer {len(have)}. "
            "Resume with the recipe that the run began with."
        )


def _described(found: tuple[int, list[int]] | None) -> str:
    return f"of shape {found[1]} in group {found[0]}" if found else "missing"


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _setting(saved: Any, present: Any) -> Any:
    """A group's setting, as a tuple and on the device where the optimizer has one of its own."""
    if isinstance(present, tuple):
        return tuple(_setting(s, p) for s, p in zip(saved, present, strict=True))
    if isinstance(saved, Tensor):
        device = present.device if isinstance(present, Tensor) else saved.device
        return saved.to(device, copy=True)
    return saved


def _placed(saved: Any, parameter: Parameter, *, moved: object) -> Any:
    """A copy in the saved dtype; the optimizer's `load_state_dict` would round to the parameter's."""
    if isinstance(saved, list):
        return [_placed(inner, parameter, moved=moved) for inner in saved]
    if isinstance(saved, dict):
        return {key: _placed(inner, parameter, moved=moved) for key, inner in saved.items()}
    if not isinstance(saved, Tensor):
        return saved
    if saved.shape != parameter.shape or not moved:
        return saved.to(parameter.device if moved else saved.device, copy=True)
    # strides of the parameter: kernels that take both walk over them together
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
