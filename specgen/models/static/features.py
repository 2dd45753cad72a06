"""The target's features at fixed addresses, for draft heads on static passes."""

from __future__ import annotations

from torch import Tensor

from specgen.models.target_features import TargetFeatures


class StaticFeatures(TargetFeatures):
    """`TargetFeatures` in one buffer whose row i belongs to position i, written by positions that the device knows.

    The owner of the cache calls `record` after each pass, because only the host knows how many rows are valid.

    Args:
        first: As in `TargetFeatures`.
        buffer: `[capacity, hidden]` of zeros.
    """

    def __init__(self, first: int, buffer: Tensor) -> None:
        super().__init__(first)
        self.buffer = buffer

    def grow(self, capacity: int, num_kept: int) -> None:
        """Makes room for `capacity` positions."""
        old = self.buffer
        self.buffer = old.new_zeros(capacity, old.shape[1])
        self.buffer[:num_kept] = old[:num_kept]

    def release(self) -> None:
        """Frees the buffer."""
        self.buffer = self.buffer.new_empty(0, self.buffer.shape[1])
        self.rewind(0)

    def write(self, positions: Tensor, rows: Tensor) -> None:
        """Stores rows `[n, hidden]` at positions `[n]`."""
        self.buffer.index_copy_(0, positions, rows)

    def record(self, first: int, last: int) -> None:
        """Notes that the rows of positions `first` to `last - 1` are valid now."""
        if first != self.end:
            self.first = first
        self.end = last

    def rows(self, first: int, last: int) -> Tensor:
        """Returns `[last - first, hidden]`, positions `first` to `last - 1`; all of them must be known."""
        assert self.first <= first <= last <= self.end, "these features are not known"
        return self.buffer[first:last]
