"""Returns a llama.cpp context to earlier running states: those of convolutions and recurrences, which it can't crop."""

from __future__ import annotations

import ctypes
from typing import Any

from specgen.core.errors import DeviceError
from specgen.models.checkpoints import Checkpoints

NUM_SEQUENCES = 2
"""The text, and the text as it was before the last draft."""


class SequenceStates:
    """The running states of the first sequence of a context, and what it can return to.

    Before a draft, the second sequence gets the same text. Nothing is copied: the next pass reads the states where they
    are, and writes those of the first sequence elsewhere. Copies in the host's memory are made at the ends of prompts.

    Args:
        library: The module `llama_cpp.llama_cpp`.
        context: Of `NUM_SEQUENCES` sequences that share their positions.
    """

    def __init__(self, library: Any, context: Any) -> None:
        self._library, self._context = library, context
        self._memory = library.llama_get_memory(context)
        self.clear()

    def clear(self) -> None:
        """Forgets all; the caller empties the context."""
        self._checkpoints = Checkpoints(self._copy)
        self._num_kept = 0
        """Tokens of the second sequence."""

    def note_prompt(self, length: int) -> None:
        """Copies the states at the end of a prompt of this length."""
        self._checkpoints.note_prompt(length)

    def note_draft(self, length: int) -> None:
        """Keeps the states after this length, where a draft begins."""
        if self._num_kept != length:
            self._drop_kept()
            self._library.llama_memory_seq_cp(self._memory, 0, 1, -1, -1)
            self._num_kept = length

    def restore(self, length: int) -> int:
        """Returns to the longest known prefix of at most `length` tokens.

        Returns:
            Its length; 0 if none is known. Keys and values of later tokens may remain.
        """
        best = self._checkpoints.best(length)
        if 0 < self._num_kept <= length and (best is None or best[0] <= self._num_kept):
            self._library.llama_memory_seq_rm(self._memory, 0, -1, -1)
            self._library.llama_memory_seq_cp(self._memory, 1, 0, -1, -1)
            self._checkpoints.forget_after(self._num_kept)
            return self._num_kept
        self._drop_kept()
        if best is None:
            return 0
        kept, states = best
        self._checkpoints.forget_after(kept)
        data = (ctypes.c_uint8 * len(states)).from_buffer(states)
        flags = self._library.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        return kept if self._library.llama_state_seq_set_data_ext(self._context, data, len(states), 0, flags) else 0

    def _drop_kept(self) -> None:
        if self._num_kept:
            self._library.llama_memory_seq_rm(self._memory, 1, -1, -1)
            self._num_kept = 0

    def _copy(self, _unneeded: object = None) -> bytearray:
        flags = self._library.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        states = bytearray(self._library.llama_state_seq_get_size_ext(self._context, 0, flags))
        data = (ctypes.c_uint8 * len(states)).from_buffer(states)
        if self._library.llama_state_seq_get_data_ext(self._context, data, len(states), 0, flags) != len(states):
            raise DeviceError("llama.cpp can't copy the states of this model's recurrent layers", "use --draft none")
        return states
