from __future__ import annotations

import json
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from rlframe.errors import RunError
from rlframe.runs.trees import flat_optimizer, load_flat_optimizer, load_tree, save_tree

DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e8m0fnu,
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal in type, in order, and bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and content(a) == content(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bits(a) == bits(b) if isinstance(a, float) else a == b


def bits(number: float) -> bytes:
    return struct.pack(">d", number)


def content(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def through_files(tree: Any) -> Any:
    with TemporaryDirectory() as directory:
        save_tree(Path(directory) / "tree", tree)
        return load_tree(Path(directory) / "tree")


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any bits, so that there are NaNs with payloads among them, in any layout."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    layout = draw(st.sampled_from(["plain", "transposed", "expanded", "every other"]))
    if layout == "transposed":
        return tensor.permute(tuple(reversed(range(tensor.dim()))))
    if layout == "expanded":
        return tensor.unsqueeze(0).expand(2, *shape)
    if layout == "every other" and tensor.dim():
        return tensor[::2]
    return tensor


FLOATS = st.floats() | st.binary(min_size=8, max_size=8).map(lambda b: struct.unpack(">d", b)[0])
KEYS = st.text(max_size=5) | st.sampled_from(
    [
        "$",
        "$tensor",
        "$float",
        "$$tensor",
        "__metadata__",
        "a/b",
        "a~1b",
        "0",
        "",
        "dtype",
        "é\0\r\n",
    ]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.integers(2**53, 2**200) | FLOATS | st.text()
    | tensors()
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(TREES)
@settings(max_examples=100, deadline=None)
def test_what_comes_back_is_what_was_written(tree: Any) -> None:
    assert same(through_files(tree), tree)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 2)], ids=str)
def test_every_dtype_in_every_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape).to(dtype)
    assert same(through_files([tensor, {"a": tensor}]), [tensor, {"a": tensor}])


def test_tensors_that_share_memory_are_written_each_for_itself() -> None:
    whole = torch.arange(6.0)
    tree = {"whole": whole, "again": whole, "part": whole[2:], "turned": whole.reshape(2, 3).T}
    back = through_files(tree)
    assert same(back, tree)
    back["whole"].zero_()
    assert same(back["again"], whole)


def test_views_that_only_say_conjugated_or_negative_keep_their_values() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    lazy = torch._neg_view(torch.ones(2))
    back = through_files({"conj": z.conj(), "imag": z.conj().imag, "negative": lazy})
    assert back["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert back["imag"].tolist() == [-2.0, 4.0]
    assert back["negative"].tolist() == [-1.0, -1.0]


def test_two_places_are_never_one_name() -> None:
    tree = {"a/b": torch.tensor(1), "a~1b": torch.tensor(2), "a": {"b": torch.tensor(3)}}
    assert same(through_files(tree), tree)


def test_a_parameter_comes_back_as_its_values() -> None:
    back = through_files([nn.Parameter(torch.ones(2))])[0]
    assert type(back) is torch.Tensor
    assert not back.requires_grad


def test_a_loaded_tensor_is_not_the_file(tmp_path: Path) -> None:
    save_tree(tmp_path / "tree", torch.ones(3))
    loaded = load_tree(tmp_path / "tree")
    (tmp_path / "tree.safetensors").write_bytes(b"")  # reading a mapped file of no bytes is SIGBUS
    assert loaded.tolist() == [1, 1, 1]


def test_the_files_can_be_read_without_us(tmp_path: Path) -> None:
    save_tree(tmp_path / "step.10", {"state": {"a.weight": {"step": torch.tensor(3.0)}}, "lr": 0.5})
    save_tree(tmp_path / "step.11", {})
    assert load_file(tmp_path / "step.10.safetensors") == {"/state/a.weight/step": 3.0}
    assert json.loads((tmp_path / "step.10.json").read_text())["lr"] == 0.5


class Marked(str):
    """A str that would come back as a plain one."""


class Colour(IntEnum):
    """An int that would come back as a plain one."""

    RED = 1


class Sharded(torch.Tensor):
    """A tensor that holds a part, as those of torch.distributed do."""


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": [1, {"b": (1, 2)}]}, "^/a/1/b: a tuple "),
        ({"a": [{3: 1}]}, "^/a/0: the key 3 is no str"),
        ({"a": {None: 1}}, "^/a: the key None is no str"),
        ({"a": {Marked("x"): 1}}, "^/a: the key 'x' is no str"),
        ({"x/y": {1}}, "^/x~1y: a set "),
        ((), "^the tree: a tuple "),
        ([np.float64(0.5)], "^/0: a float64 "),
        ([Marked("x")], "^/0: a Marked "),
        ([Colour.RED], "^/0: a Colour "),
        ([OrderedDict()], "^/0: a OrderedDict "),
        ([b"x"], "^/0: a bytes "),
        ([1j], "^/0: a complex "),
        ([torch.ones(2).as_subclass(Sharded)], "^/0: a Sharded "),
        ([torch.ones(2).to_sparse()], "^/0: a sparse"),
        ([torch.ones(2, device="meta")], "^/0: .* meta tensor"),
    ],
    ids=str,
)
def test_what_could_not_come_back_is_refused_by_its_place(
    tree: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=words):
        save_tree(tmp_path / "tree", tree)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tree", [{"a": "\ud83d\ude00"}, {"a": {"\ud800": 1}}], ids=["value", "key"]
)
def test_a_str_that_is_no_text_is_refused_by_its_place(tree: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^/a: .* is not Unicode text"):
        save_tree(tmp_path / "tree", tree)


def test_files_that_are_no_tree_are_said_so(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    with pytest.raises(RunError, match=r"tree: cannot be read"):
        load_tree(path)
    save_tree(path, {"a": torch.ones(2)})
    text = (tmp_path / "tree.json").read_text()
    for broken in (text[:-4], text.replace("/a", "/b")):
        (tmp_path / "tree.json").write_text(broken)
        with pytest.raises(RunError, match=r"written together"):
            load_tree(path)
    (tmp_path / "tree.json").write_text(text)
    (tmp_path / "tree.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot be read"):
        load_tree(path)


# ---- optimizers

MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "fused": lambda groups: torch.optim.AdamW(groups, fused=True),
    "foreach": lambda groups: torch.optim.AdamW(groups, foreach=True, weight_decay=0.3),
    "amsgrad": lambda groups: torch.optim.AdamW(groups, amsgrad=True, betas=(0.5, 0.7)),
    "tensor rate": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01), foreach=False),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.01),
}


class Small(nn.Module):
    """A matrix, a vector, a 0-dim, a channels-last and an unused parameter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(4, 3, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))
        weight = torch.randn(2, 3, 2, 2, dtype=dtype).contiguous(memory_format=torch.channels_last)
        self.filters = nn.Parameter(weight)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))

    def loss(self, step: int) -> torch.Tensor:
        dtype = self.scale.dtype
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        corner = torch.arange(24.0).reshape(2, 3, 2, 2).to(dtype)
        return (self.linear(x) * self.scale).pow(2).sum() + (self.filters * corner).pow(2).sum()


def grouped(model: Small, *, backwards: bool = False) -> list[dict[str, Any]]:
    decayed = [model.linear.weight, model.filters, model.unused]
    rest = [model.linear.bias, model.scale]
    order = -1 if backwards else 1
    return [{"params": decayed[::order], "lr": 0.02}, {"params": rest[::order]}]


def train(model: Small, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss = model.loss(step)
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:  # a schedule, whose last value is state too
            group["lr"] = group["lr"] * 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_training_goes_on_as_if_it_had_never_stopped(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Small(dtype)
    optimizer = MAKERS[kind](grouped(model))
    train(model, optimizer, range(3))
    tree = flat_optimizer(optimizer, dict(model.named_parameters()))
    save_tree(tmp_path / "optimizer", tree)
    save_tree(tmp_path / "model", dict(model.state_dict()))
    train(model, optimizer, range(3, 6))

    other = Small(dtype)
    other.load_state_dict(load_tree(tmp_path / "model"))
    fresh = MAKERS[kind](grouped(other, backwards=True))
    names = dict(other.named_parameters())
    load_flat_optimizer(fresh, names, load_tree(tmp_path / "optimizer"))
    train(other, fresh, range(3, 6))

    assert same(dict(other.state_dict()), dict(model.state_dict()))
    resumed = flat_optimizer(fresh, names)["state"]
    unbroken = flat_optimizer(optimizer, dict(model.named_parameters()))["state"]
    assert same({name: resumed[name] for name in unbroken}, unbroken)
    for ours, theirs in zip(fresh.param_groups, optimizer.param_groups, strict=True):
        assert {**ours, "params": 0} == {**theirs, "params": 0}


def test_an_optimizer_with_lists_in_its_state_goes_on_too() -> None:
    def made() -> tuple[nn.Linear, torch.optim.LBFGS, Callable[[], torch.Tensor]]:
        torch.manual_seed(2)
        model = nn.Linear(3, 3)
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(torch.eye(3)) - torch.eye(3)).pow(4).sum()
            loss.backward()
            return loss

        return model, optimizer, closure

    model, optimizer, closure = made()
    optimizer.step(closure)
    tree = through_files(
        [flat_optimizer(optimizer, dict(model.named_parameters())), dict(model.state_dict())]
    )
    optimizer.step(closure)
    other, fresh, again = made()
    other.load_state_dict(tree[1])
    load_flat_optimizer(fresh, dict(other.named_parameters()), tree[0])
    fresh.step(again)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def trained() -> tuple[Small, torch.optim.Optimizer, dict[str, Any]]:
    model = Small()
    optimizer = torch.optim.AdamW(grouped(model))
    train(model, optimizer, range(2))
    return model, optimizer, flat_optimizer(optimizer, dict(model.named_parameters()))


def test_state_is_by_name_and_says_nothing_of_the_machine() -> None:
    _, _, tree = trained()
    assert set(tree["state"]["scale"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert "unused" not in tree["state"]
    assert tree["groups"][0]["names"] == ["linear.weight", "filters", "unused"]
    assert tree["groups"][1]["shapes"] == [[3], []]
    assert tree["groups"][0]["lr"] == pytest.approx(0.02 * 0.81)
    assert not {"params", "fused", "foreach", "capturable"} & tree["groups"][0].keys()


def test_moments_of_more_bits_than_their_parameter_are_not_rounded() -> None:
    model = Small(torch.bfloat16)
    optimizer = torch.optim.AdamW(grouped(model))
    optimizer.state[model.scale] = {"step": torch.tensor(1.0), "exp_avg": torch.tensor(1 / 3)}
    tree = flat_optimizer(optimizer, dict(model.named_parameters()))
    fresh = torch.optim.AdamW(grouped(model))
    load_flat_optimizer(fresh, dict(model.named_parameters()), tree)
    assert same(fresh.state[model.scale]["exp_avg"], torch.tensor(1 / 3))


def test_the_optimizer_gets_copies() -> None:
    model = Small()
    names = dict(model.named_parameters())
    optimizer = MAKERS["tensor rate"](grouped(model))
    train(model, optimizer, range(2))
    tree = through_files(flat_optimizer(optimizer, names))
    kept = through_files(tree)
    fresh = MAKERS["tensor rate"](grouped(model))
    load_flat_optimizer(fresh, names, tree)
    fresh.param_groups[1]["lr"].zero_()
    train(model, fresh, range(2))
    assert float(fresh.state[model.scale]["step"]) == 4
    assert same(tree, kept)


def test_state_that_was_there_before_loading_is_gone() -> None:
    model, optimizer, _ = trained()
    names = dict(model.named_parameters())
    empty = flat_optimizer(torch.optim.AdamW(grouped(model)), names)
    load_flat_optimizer(optimizer, names, empty)
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.02


def test_of_several_names_of_a_parameter_the_first_counts() -> None:
    model = Small()
    optimizer = torch.optim.AdamW(grouped(model))
    train(model, optimizer, range(1))
    names = {**dict(model.named_parameters()), "tied": model.scale}
    tree = flat_optimizer(optimizer, names)
    assert "scale" in tree["state"]
    assert "tied" not in tree["state"]
    load_flat_optimizer(torch.optim.AdamW(grouped(model)), names, tree)


def renamed(tree: dict[str, Any], group: int, old: str, new: str) -> None:
    names = tree["groups"][group]["names"]
    names[names.index(old)] = new


def moved(tree: dict[str, Any]) -> None:
    first, second = tree["groups"]
    second["names"].append(first["names"].pop())
    second["shapes"].append(first["shapes"].pop())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: renamed(t, 0, "filters", "kernels"), "'filters' is missing there and of shape"),
        (
            lambda t: t["groups"][1]["shapes"].__setitem__(0, [7]),
            r"'linear.bias' is of shape \[7\]",
        ),
        (lambda t: t["groups"].pop(), "'linear.bias' is missing there"),
        (moved, "'unused' is of shape .* in group 1 there and of shape .* in group 0 here"),
        (
            lambda t: t["groups"].append({"names": ["lora"], "shapes": [[1]]}),
            r"'lora' is of shape \[1\] in group 2 there and missing here",
        ),
        (lambda t: t["groups"].append({"names": [], "shapes": []}), "has 3 groups"),
    ],
    ids=["renamed", "shape", "fewer", "moved", "more", "groups"],
)
def test_state_of_another_model_is_refused_by_name_and_changes_nothing(
    change: Callable[[dict[str, Any]], None], words: str
) -> None:
    model, optimizer, tree = trained()
    names = dict(model.named_parameters())
    before, other = through_files(tree), through_files(tree)
    change(other)
    with pytest.raises(RunError, match=words):
        load_flat_optimizer(optimizer, names, other)
    assert same(flat_optimizer(optimizer, names), before)


def test_a_parameter_without_a_name_is_a_programmers_mistake() -> None:
    model, optimizer, tree = trained()
    names = {n: p for n, p in model.named_parameters() if n != "scale"}
    with pytest.raises(ValueError, match=r"group 1 .* no name"):
        flat_optimizer(optimizer, names)
    with pytest.raises(ValueError, match=r"group 1 .* no name"):
        load_flat_optimizer(optimizer, names, tree)


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickled")

    _, _, tree = trained()
    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(sys.modules["pickle"], name, refuse)
    save_tree(tmp_path / "tree", tree)
    assert same(load_tree(tmp_path / "tree"), tree)


@pytest.mark.parametrize("kernel", [None, "fused", "capturable"])
def test_a_count_of_steps_lies_where_the_kernel_reads_it(kernel: str | None) -> None:
    """Moments lie beside their parameter, whatever the kernel."""
    _, _, tree = trained()
    elsewhere = Small().to("meta")
    fresh = torch.optim.AdamW(grouped(elsewhere))
    load_flat_optimizer(fresh, dict(elsewhere.named_parameters()), _with(tree, kernel))
    state = fresh.state[elsewhere.scale]
    assert state["exp_avg"].device.type == "meta"
    assert state["step"].device.type == ("cpu" if kernel is None else "meta")


def _with(tree: Any, kernel: str | None) -> Any:
    groups = [{**group, **({kernel: True} if kernel else {})} for group in tree["groups"]]
    return {**tree, "groups": groups}


def test_a_rate_that_is_a_tensor_lies_where_the_optimizers_own_lies() -> None:
    _, _, tree = trained()
    groups = [{**group, "lr": torch.tensor(0.5)} for group in tree["groups"]]
    model = Small()
    names = dict(model.named_parameters())
    for own, device in ((torch.tensor(0.1, device="meta"), "meta"), (0.1, "cpu")):
        fresh = torch.optim.AdamW(grouped(model))
        for group in fresh.param_groups:
            group["lr"] = own
        load_flat_optimizer(fresh, names, {**tree, "groups": groups})
        assert {group["lr"].device.type for group in fresh.param_groups} == {device}


def test_a_setting_of_another_length_is_not_cut() -> None:
    model, optimizer, tree = trained()
    groups = [{**group, "betas": [0.9, 0.99, 0.999]} for group in tree["groups"]]
    with pytest.raises(ValueError, match="zip"):
        load_flat_optimizer(optimizer, dict(model.named_parameters()), {**tree, "groups": groups})
