"""Implements what a target, a draft model and a draft head on recorded passes have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specgen.core.settings import MAX_DRAFT_TOKENS
from specgen.models.static.inputs import MAX_ROWS, DraftedTokens, PassInputs, capacity_for, padded_rows
from specgen.models.static.recorder import Recorder, Replays

NUM_VERDICTS = 4
"""Numbers of a verdict before the draft's ids."""


class RecordedPasses:
    """Recordings, their inputs, and the tokens of a greedy draft: most of `RecordingModel` and `GreedyDrafter`."""

    def _init_recording(self, device: torch.device, recorder: Recorder, columns: Tensor | None = None) -> None:
        self.replays = Replays(recorder)
        self.capacity = 0
        """Positions of the cache."""
        with torch.inference_mode():
            self._inputs = PassInputs(device)
            self._drafted = DraftedTokens(device, MAX_DRAFT_TOKENS, columns)

    @property
    def has_failed(self) -> bool:
        """Whether recording failed, so that passes run plainly."""
        return self.replays.has_failed

    @property
    def num_warmups(self) -> int:
        """Passes that were slower than later ones of their size: first runs and recordings."""
        return self.replays.num_warmups

    def padded_rows(self, num_rows: int) -> int:
        """Returns the rows of the recorded pass for `num_rows`; larger passes are not recorded, nor padded."""
        return padded_rows(num_rows)

    def take_failure(self) -> str | None:
        """Returns once why recording failed, if it did."""
        return self.replays.take_failure()

    def drafted_ids(self, count: int) -> Tensor:
        """Returns the first tokens that `draft_token` drafted, `[count]`; the next draft overwrites them."""
        return self._drafted.first(count)

    def likeliest(self, logits: Tensor) -> int:
        """Reads the id of the likeliest token of `[1, vocab]` logits."""
        return self._drafted.id_of(int(logits.max(dim=-1).indices))  # as in `DraftedTokens`: equal logits occur

    def is_draft_finite(self) -> Tensor:
        """Returns whether the draft's logits were finite, `[1]`, on the device."""
        return self._drafted.is_finite

    def send_confidence(self, index: int) -> None:
        """Starts to copy the probability of the token drafted last to the host."""
        self._drafted.send_confidence(index)

    def confidence(self, index: int) -> float:
        """Reads the probability of a drafted token that was sent; NaN if a logit was NaN or infinite."""
        return self._drafted.confidence(index)

    def _make_room(self, num_positions: int, grow: Callable[[int], None], reset: Callable[[], None]) -> None:
        """Calls `grow(capacity)` if the cache lacks room for `num_positions` and padding, and `reset` if that fails.

        The recordings are forgotten first: none may outlive the tensors it uses.
        """
        if not self._has_room(num_positions):
            capacity = capacity_for(num_positions + MAX_ROWS)
            self.replays.clear()
            try:
                grow(capacity)
            except BaseException:
                reset()
                raise
            self.capacity = capacity

    def _has_room(self, num_positions: int) -> bool:
        """Returns whether the cache holds `num_positions` and padding after them."""
        return num_positions + MAX_ROWS <= self.capacity

    def _forget_recordings(self) -> None:
        """Forgets the recordings and the ids of earlier passes, because the cache is released."""
        self.replays.clear()
        self._inputs.ids.zero_()
        self.capacity = 0
