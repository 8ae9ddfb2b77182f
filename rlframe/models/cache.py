"""What a model remembers of the tokens that it has read, in three kinds.

Ordinary attention gets a key-value cache that writes in place: transformers' own concatenates, copying
all of it a token. State-space, linear-attention and hybrid models get the cache that they make
themselves. A model that keeps nothing, or whose cache is wrong, reads everything again for each token.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_NAMES = ("past_key_values", "cache_params", "state")
"""What transformers' architectures call their cache, as an argument and in their output."""


class Memory(Protocol):
    """Lets a policy read a few tokens after those that were read before."""

    def reading(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The tokens to read now, and the trunk's other arguments, for new tokens [B, n]."""
        ...

    def keep(self, output: Any) -> None:
        """Take from the trunk's output what the next call needs."""
        ...

    def select(self, rows: Tensor) -> bool:
        """Keep these rows of the batch; False if it keeps all, because it cannot drop any."""
        ...


class _GrowingLayer(DynamicLayer):
    """Keys and values in a buffer of fixed length; `keys` and `values` are views of the used part."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            batch, heads, _, width = key_states.shape
            self._buffers = (
                key_states.new_empty(batch, heads, self._capacity, width),
                value_states.new_empty(batch, heads, self._capacity, value_states.shape[-1]),
            )
        end = self._used + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._used : end] = new
        self._used = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._used

    def select(self, rows: Tensor) -> None:
        if self._buffers is not None:
            keys, values = self._buffers
            self._buffers = keys[rows], values[rows]
            self.keys, self.values = (buffer[:, :, : self._used] for buffer in self._buffers)


class GrowingCache(DynamicCache):
    """A `DynamicCache` for a known greatest length, in which rows can be dropped.

    Args:
      capacity: tokens of prompt and response together.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(_GrowingLayer(self._capacity))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def reading(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        return tokens, {
            "position_ids": positions,
            "attention_mask": mask,
            "past_key_values": self,
            "use_cache": True,
        }

    def keep(self, output: Any) -> None:
        """Nothing: the model wrote into it."""

    def select(self, rows: Tensor) -> bool:
        for layer in self.layers:
            assert isinstance(layer, _GrowingLayer)
            layer.select(rows)
        return True


class OwnCache:
    """The cache that an architecture brings along, passed from each output to the next call.

    Args:
      model: a transformers `...ForCausalLM`.
      reader: the part of it that is called: its trunk, or itself.
      drops: whether rows can be dropped from it; some models keep a part of it elsewhere.
    """

    def __init__(self, model: Any, reader: Any, *, drops: bool) -> None:
        parameters = inspect.signature(reader.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._drops = drops
        self._given = {
            name
            for name in ("position_ids", "attention_mask", "use_cache")
            if anything or name in parameters
        }
        self._name = next((n for n in _NAMES if n in parameters), _NAMES[0] if anything else None)
        if self._name is None:
            raise ValueError(f"{type(reader).__name__} takes no cache")
        self._held: Any = None
        if model._supports_default_dynamic_cache():
            self._held = DynamicCache(config=model.config.get_text_config(decoder=True))

    def reading(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        given = {"position_ids": positions, "attention_mask": mask, "use_cache": True}
        known = {key: value for key, value in given.items() if key in self._given}
        return tokens, {**known, str(self._name): self._held}

    def keep(self, output: Any) -> None:
        self._held = output.get(self._name, self._held)

    def select(self, rows: Tensor) -> bool:
        if not (self._drops and isinstance(self._held, Cache)):
            return False
        # Every cache of transformers can be reordered; one with parts of its own overrides the other.
        if type(self._held).batch_select_indices is not Cache.batch_select_indices:
            self._held.batch_select_indices(rows)
        else:
            self._held.reorder_cache(rows)  # type: ignore[arg-type]  # any integers do
        return True


class Everything:
    """No cache: all tokens are read again for each new one. Right for every architecture, and slow."""

    def __init__(self) -> None:
        self._tokens: Tensor | None = None

    def reading(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Any]]:
        if mask is not None:
            raise ValueError("without a cache rows are read without padding")
        self._tokens = tokens if self._tokens is None else torch.cat([self._tokens, tokens], 1)
        return self._tokens, {"use_cache": False}

    def keep(self, output: Any) -> None:
        """Nothing: it is computed again."""

    def select(self, rows: Tensor) -> bool:
        assert self._tokens is not None
        self._tokens = self._tokens[rows]
        return True
