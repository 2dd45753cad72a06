"""Runs a GGUF model with llama.cpp and a KV cache that can be rewound: token ids to logits, as `CachedModel`.

Reaches the library only through the loaded weights (`specgen.loading.llama_cpp`), so this module imports quickly.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from specgen.core.errors import DeviceError, MemoryShortageError, PromptError
from specgen.core.settings import MAX_CHECKED_TOKENS
from specgen.models.llama_cpp_states import NUM_SEQUENCES, SequenceStates

PREFILL_CHUNK = 128
"""Tokens of one prefill pass: larger ones are no faster on a CPU, and Ctrl-C waits for the end of a pass."""


class NativeWeights(Protocol):
    """Weights in memory, and their library. They must live as long as any model that uses them."""

    library: Any
    """The module `llama_cpp.llama_cpp`."""
    pointer: Any
    num_embeddings: int

    def last_message(self) -> str:
        """Returns the library's last error message, on one line; may be empty."""


class _Context:
    """Owns llama.cpp's context and batch. The model and every view of its logits refer to it, so none outlives it.

    The output buffer moves when more rows are requested; then an older view is stale, as after any pass.
    """

    def __init__(self, weights: NativeWeights, params: Any) -> None:
        library = weights.library
        self.weights = weights
        self.pointer = library.llama_init_from_model(weights.pointer, params)
        if not self.pointer:
            reason = weights.last_message() or "no reason given"
            raise MemoryShortageError(
                f"llama.cpp can't create a context of {params.n_ctx} tokens: {reason}", "give a smaller --context-size"
            )
        self.batch = library.llama_batch_init(params.n_batch, 0, 1)
        weakref.finalize(self, _free, library, self.pointer, self.batch)

    def rows_at(self, address: int, num_rows: int, width: int) -> Tensor:
        """Returns the library's output buffer as `[num_rows, width]`."""
        buffer: Any = (ctypes.c_float * (num_rows * width)).from_address(address)
        buffer.owner = self
        return torch.from_numpy(np.frombuffer(buffer, dtype=np.float32)).view(num_rows, width)


class LlamaCppModel:
    """A model and its llama.cpp context, the KV cache of one text. The cache's invariant is that of `CachedModel`.

    The context is freed with this object and the last view of its logits, or at exit.

    Args:
        weights: The model.
        vocab_size: Logits are cut to this width.
        context_size: Positions of the cache; its memory is allocated at once.
        num_threads: Threads of a pass.

    Raises:
        MemoryShortageError: The cache does not fit.
    """

    def __init__(self, weights: NativeWeights, vocab_size: int, context_size: int, num_threads: int) -> None:
        self._weights = weights
        self._library = library = weights.library
        self.is_recurrent = bool(
            library.llama_model_is_recurrent(weights.pointer) or library.llama_model_is_hybrid(weights.pointer)
        )
        """Whether a layer has a running state, of a recurrence or a convolution: llama.cpp crops neither."""
        self.vocab_size = vocab_size
        self.num_embeddings = weights.num_embeddings
        self.device = torch.device("cpu")
        self.context_size = context_size
        self.num_threads = num_threads
        self.length = 0
        self.forward_seconds = 0.0
        self.num_forwards = 0
        self._owner = _Context(weights, self._params())
        self._context, self._batch = self._owner.pointer, self._owner.batch
        self._memory = library.llama_get_memory(self._context)
        self._states = SequenceStates(library, self._context)
        self._tokens = np.ctypeslib.as_array(self._batch.token, (PREFILL_CHUNK,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (PREFILL_CHUNK,))
        self._has_logits = np.ctypeslib.as_array(self._batch.logits, (PREFILL_CHUNK,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (PREFILL_CHUNK,))[:] = 1
        for index in range(PREFILL_CHUNK):
            self._batch.seq_id[index][0] = 0
        self._rows_at: int | None = None
        self._rows = torch.empty(0, self.num_embeddings)

    def _params(self) -> Any:
        params = self._library.llama_context_default_params()
        params.n_ctx = self.context_size
        params.n_batch = params.n_ubatch = PREFILL_CHUNK
        params.n_seq_max = NUM_SEQUENCES if self.is_recurrent else 1
        params.kv_unified = True  # the sequences share the context's positions
        # It allocates a buffer for that many rows of logits.
        params.n_outputs_max = params.n_outputs_max_per_seq = MAX_CHECKED_TOKENS
        params.n_threads = params.n_threads_batch = self.num_threads
        # A cache limited to a sliding window could not be rewound beyond the window's edge.
        params.swa_full = True
        params.no_perf = True
        return params

    def feed(self, ids: Sequence[int]) -> None:
        """Extends the cache to `ids`, without logits."""
        self._feed(ids)
        if self.is_recurrent and self.length:
            self._states.note_prompt(self.length)

    def _feed(self, ids: Sequence[int]) -> None:
        while len(ids) > self.length:
            self._decode(ids[self.length : self.length + PREFILL_CHUNK], 0)

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Returns the logits at the last positions of `ids` followed by `tail`; extends the cache by what it lacks.

        Args:
            ids: The text; its first `self.length` tokens must be those in the cache.
            num_last: Number of positions, counted from the end; none of them may be in the cache already.
            tail: `[n]` drafted ids; copied to the host. The first of them may be in the cache already.

        Returns:
            float32 `[num_last, vocab_size]` on the CPU: a view of llama.cpp's buffer, which the next call overwrites.

        Raises:
            PromptError: The text is longer than the context.
            IndexError: An id is beyond the model's embeddings.
            MemoryShortageError: Memory ran out.
            DeviceError: llama.cpp failed.
        """
        drafted = [] if tail is None else tail.tolist()
        num_missing = len(ids) + len(drafted) - self.length
        assert 1 <= num_last <= num_missing, "the logits of cached positions are not stored"
        self._feed(ids[: max(self.length, len(ids) + len(drafted) - max(num_last, PREFILL_CHUNK))])
        if self.is_recurrent and drafted and self.length <= len(ids):
            self._states.note_draft(self.length)
        new = [*ids[self.length :], *drafted[max(0, self.length - len(ids)) :]]
        if num_last <= MAX_CHECKED_TOKENS and len(new) <= PREFILL_CHUNK:
            return self._decode(new, num_last)[:, : self.vocab_size]
        return self._logits_in_pieces(new, num_last)[:, : self.vocab_size]

    def _logits_in_pieces(self, new: Sequence[int], num_last: int) -> Tensor:
        rows = []
        num_without_logits = len(new) - num_last
        for start in range(0, len(new), MAX_CHECKED_TOKENS):
            piece = new[start : start + MAX_CHECKED_TOKENS]
            num_rows = min(len(piece), max(0, start + len(piece) - num_without_logits))
            rows.append(self._decode(piece, num_rows).clone())
        return torch.cat(rows)

    def rewind(self, length: int) -> None:
        """Shortens the cache to at most `length` tokens: to the longest prefix that llama.cpp can return to."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        if length == self.length:
            return
        # llama.cpp removes keys and values only where the states are those before them.
        kept = self._states.restore(length) if self.is_recurrent else length
        if kept == 0 or not self._library.llama_memory_seq_rm(self._memory, 0, kept, -1):
            self.reset()
            return
        self.length = kept

    def reset(self) -> None:
        """Empties the cache."""
        self._library.llama_memory_clear(self._memory, False)
        self._states.clear()
        self.length = 0

    def _decode(self, new: Sequence[int], num_last: int) -> Tensor:
        """Feeds `new`; returns the logits of its last positions, `[num_last, width]`. A failure empties the cache."""
        count, end = len(new), self.length + len(new)
        if end > self.context_size:
            raise PromptError(
                f"the text has {end} tokens, but llama.cpp's context has {self.context_size}",
                "give a larger --context-size or a shorter prompt",
            )
        # A loop: after a pass, which evicted numpy from the processor's cache, four numpy calls cost more.
        for index, token in enumerate(new):
            self._tokens[index] = token
            self._positions[index] = self.length + index
            self._has_logits[index] = index >= count - num_last
        self._batch.n_tokens = count
        started = perf_counter()
        try:
            status = self._library.llama_decode(self._context, self._batch)
            self._library.llama_synchronize(self._context)
            if status != 0:
                raise self._failure(status, max(new))
            self.length = end
        except BaseException:
            # Some of the tokens may be in the cache and others not, also after Ctrl-C.
            self.reset()
            raise
        self.forward_seconds += perf_counter() - started
        self.num_forwards += 1
        return self._last_rows(num_last)

    def _last_rows(self, count: int) -> Tensor:
        """Returns a view of the library's output buffer, created again only if the buffer has moved."""
        if count == 0:
            return self._rows[:0]
        pointer = self._library.llama_get_logits(self._context)
        address = ctypes.addressof(pointer.contents)
        if address != self._rows_at:
            self._rows, self._rows_at = self._owner.rows_at(address, MAX_CHECKED_TOKENS, self.num_embeddings), address
        return self._rows[:count]

    def _failure(self, status: int, largest_id: int) -> Exception:
        """Returns the error for a status of `llama_decode`, as documented in llama.h."""
        message = self._weights.last_message()
        if status == -1 and largest_id >= self.num_embeddings:
            return IndexError(f"token id {largest_id} is out of range: the model has {self.num_embeddings} tokens")
        if status == 1:
            return PromptError(f"the context of {self.context_size} tokens is full", "give a larger --context-size")
        if status == -2:
            return MemoryShortageError(
                "out of memory during generation", "use a smaller model, or a smaller --context-size"
            )
        return DeviceError(
            f"llama.cpp failed with code {status}{': ' + message if message else ''}", "try --backend torch"
        )


def _free(library: Any, context: Any, batch: Any) -> None:
    library.llama_batch_free(batch)
    library.llama_free(context)
