"""Defines what a recorded pass reads and writes: tensors at fixed addresses, and the sizes that passes come in."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.engine.transfer import HostCopy, upload

MAX_ROWS = 17
"""Rows of the largest recorded pass: a draft of 16 tokens and the token before it."""
ROWS = (1, 2, 3, 4, 5, 6, 8, 12, MAX_ROWS)
"""Rows of the recorded passes; others are padded.

By its own rules for A100, H100 and RTX 4090, bitsandbytes 0.50 leaves the fused kernels of 4-bit weights at 5 to 8 rows
for some shapes, so these have sizes of their own.
"""
FIRST_BUCKET = 512
"""Positions that the shortest recorded pass reads; each further bucket is twice as long."""


def padded_rows(num_rows: int) -> int:
    """Returns the rows of the recorded pass for `num_rows`; larger passes are not recorded, nor padded."""
    return ROWS[bisect_left(ROWS, num_rows)] if num_rows <= MAX_ROWS else num_rows


def capacity_for(num_positions: int) -> int:
    """Returns the smallest bucket that holds `num_positions`."""
    capacity = FIRST_BUCKET
    while capacity < num_positions:
        capacity *= 2
    return capacity


Ids = Tensor | Sequence[int]
"""Ids on the device, or of the host."""


class PassInputs:
    """Inputs of a recorded pass: ids, the position of the first one, and how many of the rows are not padding.

    Args:
        device: The device that the passes run on.
    """

    def __init__(self, device: torch.device) -> None:
        # One tensor, so that one copy fills it, or moves it to another device.
        self._all = torch.zeros(2 + MAX_ROWS, dtype=torch.int64, device=device)
        self.position, self.count, self.ids = self._all[:1], self._all[1:2], self._all[2:]
        self.offsets = torch.arange(MAX_ROWS, device=device)
        # Made once: a view takes longer than a copy.
        self._beginnings = [self._all[:length] for length in range(2 + MAX_ROWS + 1)]
        self._after_first = [self.ids[1 : 1 + length] for length in range(MAX_ROWS)]

    def write(self, new: Ids, position: int, count: int) -> None:
        """Sets the first ids to `new` `[n]`, and the other inputs to numbers of the host. Waits for nothing."""
        if not isinstance(new, Tensor):
            upload(self._beginnings[2 + len(new)], [position, count, *new])
            return
        self.ids[: new.shape[0]].copy_(new, non_blocking=True)
        self.position.fill_(position)
        self.count.fill_(count)

    def write_draft(self, draft_ids: Tensor) -> None:
        """Sets the ids after the first one to `[n]` of the same device. Waits for nothing."""
        self._after_first[draft_ids.shape[0]].copy_(draft_ids, non_blocking=True)

    def copy_from(self, other: PassInputs) -> None:
        """Copies the inputs of a pass from another device. The host waits for nothing."""
        self._all.copy_(other._all, non_blocking=True)

    def positions(self, rows: int) -> Tensor:
        """Returns the positions of the rows, `[rows]`."""
        return self.offsets[:rows] + self.position

    def feed_back(self, token: Tensor) -> None:
        """Makes a token `[1]` the input of the next pass, which follows this one."""
        self.ids[:1] = token
        self.position += self.count
        self.count.fill_(1)


class DraftFlag:
    """Whether the draft model's logits were finite, on the device of the target.

    Args:
        device: The target's.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_finite = torch.ones(1, dtype=torch.bool, device=device)
        self._may_be_false = False

    def write(self, is_finite: Tensor | None) -> None:
        """Sets the flag to `[]` or `[1]`; None: to True. Waits for nothing."""
        if is_finite is not None:
            self._may_be_false = True
            self.is_finite.copy_(is_finite, non_blocking=True)
        elif self._may_be_false:
            self.is_finite.fill_(True)
            self._may_be_false = False


class DraftedTokens:
    """The tokens of one greedy draft, chosen and stored on the device.

    Args:
        device: The draft's device.
        num_tokens: Tokens of the longest draft.
        columns: As in `ModelDrafter`.
    """

    def __init__(self, device: torch.device, num_tokens: int, columns: Tensor | None = None) -> None:
        self.ids = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        self.confidences = torch.zeros(num_tokens, device=device)
        self.is_finite = torch.ones(1, dtype=torch.bool, device=device)
        """Whether all logits of this draft were finite."""
        self._index = torch.zeros(1, dtype=torch.int64, device=device)
        self._columns = columns
        self._beginnings = [self.ids[:count] for count in range(num_tokens + 1)]
        # Two, so that one can be read after the next token's was started.
        self._copies = HostCopy(self.confidences), HostCopy(self.confidences)

    def restart(self) -> None:
        """Begins a new draft."""
        self._index.zero_()
        self.is_finite.fill_(True)

    def first(self, count: int) -> Tensor:
        """Returns the first tokens, `[count]`; the next draft overwrites them."""
        return self._beginnings[count]

    def send_confidence(self, index: int) -> None:
        """As in `GreedyDrafter`."""
        self._copies[index % 2].start()

    def confidence(self, index: int) -> float:
        """As in `GreedyDrafter`."""
        return float(self._copies[index % 2].read()[index])

    def id_of(self, column: int) -> int:
        """Reads the id of a column of the logits."""
        return column if self._columns is None else int(self._columns[column])

    def append(self, logits: Tensor) -> Tensor:
        """Appends the likeliest token of `[1, vocab]` logits and returns it, `[1]`."""
        top = logits.max(dim=-1)
        token = top.indices if self._columns is None else self._columns.index_select(0, top.indices)
        self.ids.index_copy_(0, self._index, token)
        self.confidences.index_copy_(0, self._index, (top.values - logits.logsumexp(dim=-1)).exp())
        self.is_finite &= top.values.isfinite()
        self._index += 1
        return token
