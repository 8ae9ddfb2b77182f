"""LoRA (Hu et al. 2022, arXiv 2106.09685) on the policy, by peft: W x + alpha/rank * B A x, W frozen.

B starts at 0, so that the policy starts as its base model to the last bit. peft is imported where it
is needed: that takes a second, and most runs have no adapters.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlframe.errors import RecipeError, RunError, SetupError, did_you_mean, listed
from rlframe.models.policy import Policy

Targets = Literal["all-linear"] | Sequence[str]

_NAME = "default"  # peft's name of an adapter that was given none
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def targeted(model: nn.Module, targets: Targets) -> list[str]:
    """Names of the linear layers that are to have an adapter.

    Args:
      model: a transformers `...ForCausalLM`, with weights or without.
      targets: "all-linear" is every linear layer but the head; a name is that of the layer in its
        block (`q_proj`) or its whole path.

    Raises:
      RecipeError: a name is that of no linear layer, or the layer's weights are those of the embedding.
    """
    modules = dict(model.named_modules())
    linear = [name for name, found in modules.items() if isinstance(found, nn.Linear | Conv1D)]
    head = model.get_output_embeddings()  # type: ignore[operator]
    if targets == "all-linear":
        return [name for name in linear if modules[name] is not head]
    short = {_last(name) for name in linear}
    for target in targets:
        found = [name for name in modules if _matches(name, target)]
        if not found or not set(found) <= set(linear):
            what = (
                f"{found[0]} is a {type(modules[found[0]]).__name__}, and adapters go on linear layers"
                if found
                else "the policy has no such layer"
            )
            raise RecipeError(
                f"model.lora.targets: {target!r}: {what}."
                f"{did_you_mean(target, short | set(linear))} Its linear layers are {listed(short)}"
            )
    chosen = [name for name in linear if any(_matches(name, target) for target in targets)]
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    for name in chosen:
        if modules[name].weight is embedding.weight:
            raise RecipeError(
                f"model.lora.targets: {name} has the weights of the embedding, which has no adapter; "
                "leave it out"
            )
    return chosen


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def check(model: nn.Module, targets: Targets) -> None:
    """Find out before anything trains what `add` would raise; the model needs no weights."""
    _peft()
    targeted(model, targets)


def add(
    model: Any, *, rank: int, alpha: int, targets: Targets, base: str | None, seed: int
) -> None:
    """Put adapters into a model, in place, and freeze everything else of it.

    Args:
      model: a transformers `...ForCausalLM`, its weights whole.
      rank: rows of A, columns of B.
      alpha: the adapters' output is scaled by alpha / rank.
      targets: as for `targeted`.
      base: path or hub id of the model as it is now, for those who use the adapters without rlframe.
      seed: of A; the global generator is left unchanged.

    Raises:
      SetupError: there is no peft.
      RecipeError: as of `targeted`.
    """
    peft = _peft()
    chosen = targeted(model, targets)
    short = sorted({_last(name) for name in chosen})  # as others write it, if that means the same
    same = {n for n, _ in model.named_modules() if any(_matches(n, s) for s in short)}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=short if same == set(chosen) else chosen,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in chosen),
    )
    digest = hashlib.sha256(f"{seed}/lora".encode()).digest()
    model.rlframe_base = checksum(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # set right layer by layer
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "little"))
        peft.inject_adapter_in_model(config, model, adapter_name=_NAME)
    config.target_modules = sorted(config.target_modules)  # a set is written in any order
    if list(adapted(model)) != chosen:
        raise SetupError(
            f"peft {peft.__version__} put adapters on other layers than it was asked to: "
            "pip install peft==0.21.2"
        )


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise SetupError(
            f"model.lora needs peft, which cannot be imported ({error}): pip install peft"
        ) from error
    return peft


def adapted(model: nn.Module) -> dict[str, Any]:
    """Each layer that has an adapter, by name; none if there are no adapters."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if _NAME in getattr(layer, "lora_A", ()) and hasattr(layer, "base_layer")
    }


def checksum(model: nn.Module) -> str:
    """sha256 over names, shapes and the sums of all weights' bits: of which model an adapter is.

    Integers, so that device and number of threads change nothing. Much faster than reading every byte
    into a hash, and blind to values that have only changed their places.
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])
        digest.update(f"{name} {list(tensor.shape)} {int(bits.sum(dtype=torch.int64))}".encode())
    return digest.hexdigest()


class WithoutAdapters(Policy):
    """The model that a policy was before it had adapters: its own weights, no second copy of them.

    Every strategy has whole weights on every rank where the reference is asked (`Training.whole`), so
    none needs a frozen copy. Before the first update its log-probabilities are those of the policy to
    the last bit: both go the same way, and 0 is added to one of them.

    Args:
      policy: one with adapters; they are there again after each call.

    Raises:
      SetupError: this peft does not let its adapters be taken out.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(
            policy.model,
            temperature=policy.temperature,
            chunk=policy.chunk,
            profile=policy.profile,
            vocabulary=policy.vocabulary,
        )
        self._layers = list(adapted(policy.model).values())
        with self._base():
            if not all(layer.disable_adapters for layer in self._layers):
                raise SetupError(
                    "this peft does not let adapters be switched off: pip install peft==0.21.2"
                )

    @contextmanager
    def _base(self) -> Iterator[None]:
        """Without adapters. peft's own switch also changes which weights require a gradient, of which
        engines that shard them keep copies.
        """
        for layer in self._layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer._disable_adapters = False

    def hidden(self, tokens: Tensor, **kwargs: Any) -> Any:
        with self._base():
            return super().hidden(tokens, **kwargs)

    def head(self, hidden: Tensor) -> Tensor:
        with self._base():
            return super().head(hidden)


# On disk


@torch.no_grad()
def merged(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """W + alpha/rank * B A under the names that the layers had without adapters.

    Args:
      model: has adapters.
      weights: all of the model's, by name, whole.
    """
    found = dict(weights)
    for name, layer in adapted(model).items():
        a, b = (found.pop(f"{name}.{part}.{_NAME}.weight") for part in ("lora_A", "lora_B"))
        base = found.pop(f"{name}.base_layer.weight")
        wide = torch.promote_types(b.dtype, torch.float32)
        change = layer.scaling[_NAME] * (b.to(wide) @ a.to(wide))
        change = change.T if layer.fan_in_fan_out else change
        found[f"{name}.weight"] = (base.to(wide) + change.to(base.device)).to(base.dtype)
        bias = found.pop(f"{name}.base_layer.bias", None)
        if bias is not None:
            found[f"{name}.bias"] = bias
    return found


def save(model: Any, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Write the adapters alone, as peft reads them: adapter_config.json, adapter_model.safetensors.

    Args:
      model: has adapters.
      weights: all of the model's, by name, whole.
      directory: where to.
    """
    config = copy.copy(model.peft_config[_NAME])
    config.inference_mode = True
    config.save_pretrained(str(directory))
    tensors = {_stored(name): weights[name].contiguous() for name in _names(model)}
    about = {"format": "pt", "base": model.rlframe_base}
    save_file(tensors, directory / "adapter_model.safetensors", metadata=about)


def load(model: Any, directory: Path) -> dict[str, Tensor]:
    """The adapters that `save` wrote, by the names they have in the model.

    Args:
      model: has adapters, on the base model that they were trained on.
      directory: where from.

    Raises:
      RunError: they were trained on another base model.
    """
    path = directory / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        if file.metadata()["base"] != model.rlframe_base:
            raise RunError(
                f"{path} was trained on other weights than those of the policy now: the model of "
                "model.policy, or the stage before, has changed. Put it back, or begin a new run"
            )
        return {name: file.get_tensor(_stored(name)) for name in _names(model)}


def _names(model: nn.Module) -> list[str]:
    return [
        f"{name}.{part}.{_NAME}.weight" for name in adapted(model) for part in ("lora_A", "lora_B")
    ]


def _stored(name: str) -> str:
    """What peft calls a weight in its file: as if of a model wrapped twice, and without `default`."""
    return f"base_model.model.{name.removesuffix(f'.{_NAME}.weight')}.weight"
