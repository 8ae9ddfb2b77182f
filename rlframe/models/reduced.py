"""A small model of the same architecture, which shows whether the architecture is run right.

Depth, widths, experts and vocabulary shrink. Every kind of layer stays, and so does everything that
decides how positions, masks, caches and logits are treated: kinds of attention and rotation, windows,
gates, caps, multipliers, ties. The weights are random. So a reduced model sees wrong positions, a cache
that forgets or mixes rows, padding that leaks, a window that slides, a head with a cap. It cannot see
what depends on the published weights or on the full size, such as a kernel that is chosen by a width.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from rlframe.models.pretrained import new

_VOCABULARY = 160
_EXPERTS = 16
_WINDOW = 4  # the probe's texts are several times as long
_MOST_PARAMETERS = 80_000_000  # seconds, and only for experts by the dozen
_LEAST_WIDTH = 64
_ORIGINAL = "original_max_position_embeddings"

_DEPTH = re.compile(r"^(n_layers?|num_layers|num_blocks|(num_)?(hidden|encoder|decoder)_layers)$")
_WIDTH = re.compile(
    r"hidden_size|hidden_dim|intermediate|inner|ffn|embed|embd|emb_dim|d_model|d_ff|d_kv|_rank$|width"
    r"|head_dim|dim_head|d_head|dim_ff|rotary_dim|kv_channels|channels|feature|^dim$"
)
_NO_WIDTH = re.compile(
    r"vocab|window|chunk|kernel|^num_|n_layers|token|max_|patch|image|layers?$|_per_|base"
)
_SPAN = re.compile(r"window|chunk_size|local_attention")
_MANY = re.compile(r"experts$")
_FEW = re.compile(r"shared|per_|top|active|zero")


def reduced_model(config: Any, *, length: int | None) -> tuple[Any | None, list[str]]:
    """The smallest model of a config whose sizes fit each other, in float32, on the CPU.

    Args:
      config: of any causal language model.
      length: most tokens of a sequence in the run: a window or a limit of scaled rotations that it
        does not pass is not passed here either. None if it may pass all.

    Returns:
      (the model with random weights from the global generator, or None; why others cannot be made)
    """
    width = _width(config)
    reasons = []
    for factor, kinds, experts in product((16, 8, 4, 2, 1), (1, 2), (True, False)):
        if factor > 1 and width < _LEAST_WIDTH * factor:
            continue
        try:
            shape = copy.deepcopy(config)
            for part in _parts(shape):
                _shrink_depth(part, kinds=kinds)
                _shrink_sizes(part, factor=factor, experts=experts)
                _shorten_spans(part, length=length)
            with torch.device("meta"):
                size = new(shape, "causal").num_parameters()
            if size > _MOST_PARAMETERS:
                reasons.append(f"{size / 1e6:.0f} million parameters")
                continue
            model = new(shape, "causal", dtype=torch.float32).eval()
            _spread(model)
            with torch.no_grad():
                model(input_ids=torch.arange(3, 9)[None], use_cache=False)
        except Exception as error:  # whatever an architecture raises about sizes that do not fit
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        return model, reasons
    return None, reasons


def _width(config: Any) -> int:
    found = (
        vars(part).get(key)
        for part in _parts(config)
        for key in ("hidden_size", "d_model", "n_embd", "emb_dim")
    )
    return max((value for value in found if type(value) is int), default=0)


def _parts(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    yield config
    for name in config.sub_configs:
        inner = vars(config).get(name)
        if hasattr(inner, "sub_configs"):
            yield from _parts(inner)


def _shrink_depth(config: Any, *, kinds: int) -> None:
    """The fewest first layers in which every kind of layer occurs `kinds` times, if it ever does."""
    values = vars(config)
    depths = {k: v for k, v in values.items() if _DEPTH.match(k) and type(v) is int}
    patterns = {
        key: list(value)
        for key in {*values, "layers_block_type"}
        if isinstance(value := values.get(key) or _derived(config, key), list | tuple)
        and len(value) in depths.values()
    }
    kept = 2
    for pattern in patterns.values():
        if all(isinstance(kind, str) for kind in pattern):
            for kind in set(pattern):
                places = [place for place, other in enumerate(pattern) if other == kind]
                kept = max(kept, places[min(kinds, len(places)) - 1] + 1)
    for key, pattern in patterns.items():
        if key in values:
            setattr(config, key, pattern[:kept])
    for key, depth in depths.items():
        setattr(config, key, min(kept, depth))


def _derived(config: Any, key: str) -> Any:
    return getattr(config, key, None) if key == "layers_block_type" else None


def _shrink_sizes(config: Any, *, factor: int, experts: bool) -> None:
    for key, value in list(vars(config).items()):
        wide = _WIDTH.search(key) and not _NO_WIDTH.search(key)
        if wide and isinstance(value, list) and all(type(item) is int for item in value):
            setattr(config, key, [item // factor for item in value])
        elif type(value) is int:
            setattr(config, key, _shrunk(key, value, factor if wide else 1, experts=experts))


def _shrunk(key: str, value: int, factor: int, *, experts: bool) -> int:
    """A number of a config, as small as what it counts may be."""
    if "vocab" in key and value > _VOCABULARY:
        return _VOCABULARY
    if key.endswith("token_id") and value >= _VOCABULARY:
        return 0
    if experts and _MANY.search(key) and not _FEW.search(key):
        return min(value, _EXPERTS)
    divides = value % factor == 0 and value >= 2 * factor
    return value // factor if divides else value


def _shorten_spans(config: Any, *, length: int | None) -> None:
    """Windows, chunks and the lengths that rotations were scaled from, where the run passes them."""
    for key, value in list(vars(config).items()):
        passed = type(value) is int and value > _WINDOW and (length is None or length > value)
        if passed and _SPAN.search(key) and "layers" not in key:
            setattr(config, key, _WINDOW)
        if passed and key == _ORIGINAL:
            setattr(config, key, 2 * _WINDOW)
        if key in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            for scaling in (value, *(v for v in value.values() if isinstance(v, dict))):
                original = scaling.get(_ORIGINAL)
                if original is not None and (length is None or length > original):
                    scaling[_ORIGINAL] = 2 * _WINDOW


@torch.no_grad()
def _spread(model: Any) -> None:
    """Weights so large that attention and logits are far from uniform, whatever the initialiser."""
    for parameter in model.parameters():
        if parameter.dim() >= 2 and parameter.is_floating_point():
            held, wanted = float(parameter.std()), parameter.shape[-1] ** -0.5
            if 0 < held < wanted:
                parameter.mul_(wanted / held)
