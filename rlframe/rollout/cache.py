"""A key-value cache that writes in place: transformers' own concatenates, copying all of it a token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


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

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        for layer in self.layers:
            assert isinstance(layer, _GrowingLayer)
            layer.select(rows)
