"""Stores the target's features, the inputs of its head at each position, for a draft head to read."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_CAPACITY = 512
"""Rows of a new buffer; it doubles when it is full."""


class TargetFeatures:
    """Inputs of a model's head, one row per position of its cache: the hidden state after the last norm.

    A row is kept as long as the text has the position, so a drafter can be rewound to any position. A recurrent target
    reads accepted tokens again, and their rows stay valid until then. It takes one row of the model's width where the
    cache takes keys and values of every layer: 5 % more for SmolLM2-135M, 6 % for Llama-3.1-8B.

    Args:
        first: First position that will be recorded; earlier ones were computed before recording started.
    """

    def __init__(self, first: int = 0) -> None:
        self.first = first
        """Rows before this one are not known."""
        self.end = first
        self._rows: Tensor | None = None

    def append(self, first: int, rows: Tensor) -> None:
        """Adds the rows `[n, hidden]` of positions `first` on, in place of those that were known from there on."""
        if not self.first <= first <= self.end:
            self.first = first
        self.end = first + rows.shape[0]
        buffer = self._buffer(self.end - self.first, rows)
        buffer[first - self.first : self.end - self.first] = rows

    def rows(self, first: int, last: int) -> Tensor:
        """Returns `[last - first, hidden]`, positions `first` to `last - 1`; all of them must be known."""
        assert self.first <= first <= last <= self.end, "these features are not known"
        if self._rows is None:
            return torch.empty(0, 0)
        return self._rows[first - self.first : last - self.first]

    def rewind(self, length: int) -> None:
        """Drops positions from `length` on."""
        self.end = min(self.end, length)
        self.first = min(self.first, length)

    def _buffer(self, num_rows: int, like: Tensor) -> Tensor:
        """Returns a buffer for `num_rows` rows at least; a larger one keeps the rows of the old one."""
        old = self._rows
        if old is not None and old.shape[0] >= num_rows:
            return old
        capacity = max(FIRST_CAPACITY, 0 if old is None else 2 * old.shape[0], num_rows)
        # Zeros, because rows never written must not be NaN.
        self._rows = like.new_zeros(capacity, like.shape[1])
        if old is not None:
            self._rows[: old.shape[0]] = old
        return self._rows
