"""The second engine: a GGUF model with a memory, run by llama.cpp. Ids in, logits out, as `CachedModel`.

Knows the library only through the loaded weights it is given (`specgen.loading.llama_cpp`), so importing it is free.
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

from specgen.core.errors import DeviceError, LoadError, MemoryShortageError, PromptError
from specgen.core.settings import MAX_DRAFT_TOKENS

PREFILL_CHUNK = 128
"""Tokens of one prefill pass: on a CPU larger ones gain nothing, and Ctrl-C waits for the end of one."""

MAX_ROWS = MAX_DRAFT_TOKENS + 1
"""Rows of logits in one pass; llama.cpp keeps a buffer of that many rows of the vocabulary."""


class NativeWeights(Protocol):
    """Weights in memory, and the library that holds them. They must live as long as any model made of them."""

    library: Any
    """The module `llama_cpp.llama_cpp`."""
    pointer: Any
    num_embeddings: int

    def last_message(self) -> str:
        """What the library said last of an error, on one line; may be empty."""


class _Context:
    """Owner of llama.cpp's own objects, held by the model and every view of its logits: none outlives the context.

    The output buffer may move within it, when more rows are asked for; then an older view is stale, as after any pass.
    """

    def __init__(self, weights: NativeWeights, params: Any) -> None:
        library = weights.library
        self.weights = weights
        self.pointer = library.llama_init_from_model(weights.pointer, params)
        if not self.pointer:
            why = weights.last_message() or "no reason given"
            raise MemoryShortageError(
                f"llama.cpp can't make a context of {params.n_ctx} tokens: {why}", "give a smaller --context-size"
            )
        self.batch = library.llama_batch_init(params.n_batch, 0, 1)
        weakref.finalize(self, _free, library, self.pointer, self.batch)

    def rows_at(self, address: int, num_rows: int, width: int) -> Tensor:
        """The library's output buffer as `[num_rows, width]`."""
        buffer: Any = (ctypes.c_float * (num_rows * width)).from_address(address)
        buffer.owner = self
        return torch.from_numpy(np.frombuffer(buffer, dtype=np.float32)).view(num_rows, width)


class LlamaCppModel:
    """Owner of a llama.cpp context, the KV cache of one text. The rule of the cache is `CachedModel`'s.

    The context is freed with this object and the last view of its logits, or at the end of the program.

    Args:
        weights: The model.
        vocab_size: Logits are cut to this width.
        context_size: Positions of the cache; its memory is taken at once.
        num_threads: Threads of a pass.

    Raises:
        LoadError: The model keeps a running state, which can't be taken back.
        MemoryShortageError: The cache does not fit.
    """

    def __init__(self, weights: NativeWeights, vocab_size: int, context_size: int, num_threads: int) -> None:
        self._weights = weights
        self._library = library = weights.library
        if library.llama_model_is_recurrent(weights.pointer) or library.llama_model_is_hybrid(weights.pointer):
            raise LoadError(
                "this GGUF model keeps a running state, and rejected draft tokens can't be taken back from it",
                "choose a model with attention in all layers",
            )
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
        self._tokens = np.ctypeslib.as_array(self._batch.token, (PREFILL_CHUNK,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (PREFILL_CHUNK,))
        self._is_wanted = np.ctypeslib.as_array(self._batch.logits, (PREFILL_CHUNK,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (PREFILL_CHUNK,))[:] = 1
        for index in range(PREFILL_CHUNK):
            self._batch.seq_id[index][0] = 0
        self._rows_at: int | None = None
        self._rows = torch.empty(0, self.num_embeddings)

    def _params(self) -> Any:
        params = self._library.llama_context_default_params()
        params.n_ctx = self.context_size
        params.n_batch = params.n_ubatch = PREFILL_CHUNK
        params.n_seq_max = 1
        params.n_outputs_max = params.n_outputs_max_per_seq = MAX_ROWS
        params.n_threads = params.n_threads_batch = self.num_threads
        # A cache cut to a sliding window could not be taken back behind the window's edge.
        params.swa_full = True
        params.no_perf = True
        return params

    def feed(self, ids: Sequence[int]) -> None:
        """Bring the cache up to `ids`, without wanting logits."""
        while len(ids) > self.length:
            self._decode(ids[self.length : self.length + PREFILL_CHUNK], 0)

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Logits at the last positions of `ids` followed by `tail`; extends the cache by what it lacks.

        Args:
            ids: The text; its first `self.length` tokens must be what the cache holds.
            num_last: Positions wanted, counted from the end; none of them may be in the cache already.
            tail: `[n]` drafted ids; on a device they are read to the host. Its beginning may be in the cache already.

        Returns:
            float32 `[num_last, vocab_size]` on the CPU: llama.cpp's own buffer, which the next call overwrites.

        Raises:
            PromptError: The text is longer than the context.
            IndexError: An id the model has no row for.
            MemoryShortageError: Memory ran out.
            DeviceError: llama.cpp failed.
        """
        drafted = [] if tail is None else tail.tolist()
        num_missing = len(ids) + len(drafted) - self.length
        assert 1 <= num_last <= num_missing, "positions already in the cache have no logits any more"
        self.feed(ids[: max(self.length, len(ids) + len(drafted) - max(num_last, PREFILL_CHUNK))])
        new = [*ids[self.length :], *drafted[max(0, self.length - len(ids)) :]]
        if num_last <= MAX_ROWS and len(new) <= PREFILL_CHUNK:
            return self._decode(new, num_last)[:, : self.vocab_size]
        return self._logits_in_pieces(new, num_last)[:, : self.vocab_size]

    def _logits_in_pieces(self, new: Sequence[int], num_last: int) -> Tensor:
        rows = []
        num_silent = len(new) - num_last
        for start in range(0, len(new), MAX_ROWS):
            piece = new[start : start + MAX_ROWS]
            num_wanted = min(len(piece), max(0, start + len(piece) - num_silent))
            rows.append(self._decode(piece, num_wanted).clone())
        return torch.cat(rows)

    def rewind(self, length: int) -> None:
        """Forget what lies after `length` tokens; where the memory can't do that, it forgets everything."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        if length == self.length:
            return
        if length == 0 or not self._library.llama_memory_seq_rm(self._memory, 0, length, -1):
            self.reset()
            return
        self.length = length

    def reset(self) -> None:
        """Forget everything."""
        self._library.llama_memory_clear(self._memory, False)
        self.length = 0

    def _decode(self, new: Sequence[int], num_wanted: int) -> Tensor:
        """Feed `new`; logits of its last positions, `[num_wanted, width]`. A failure empties the cache."""
        count, end = len(new), self.length + len(new)
        if end > self.context_size:
            raise PromptError(
                f"the text has {end} tokens, and the context of llama.cpp {self.context_size}",
                "give a larger --context-size or a shorter prompt",
            )
        # One by one: behind a pass, whose weights filled the caches, four calls of numpy cost more than a short loop.
        for index, token in enumerate(new):
            self._tokens[index] = token
            self._positions[index] = self.length + index
            self._is_wanted[index] = index >= count - num_wanted
        self._batch.n_tokens = count
        started = perf_counter()
        try:
            status = self._library.llama_decode(self._context, self._batch)
            self._library.llama_synchronize(self._context)
            if status != 0:
                raise self._failure(status, max(new))
            self.length = end
        except BaseException:
            # Some of the tokens may be in the cache and others not; also if Ctrl-C came while it computed.
            self.reset()
            raise
        self.forward_seconds += perf_counter() - started
        self.num_forwards += 1
        return self._last_rows(num_wanted)

    def _last_rows(self, count: int) -> Tensor:
        """A view of the library's output buffer; made anew only when the buffer has moved."""
        if count == 0:
            return self._rows[:0]
        pointer = self._library.llama_get_logits(self._context)
        address = ctypes.addressof(pointer.contents)
        if address != self._rows_at:
            self._rows, self._rows_at = self._owner.rows_at(address, MAX_ROWS, self.num_embeddings), address
        return self._rows[:count]

    def _failure(self, status: int, largest_id: int) -> Exception:
        """The meaning of what `llama_decode` returned; see its comment in llama.h."""
        said = self._weights.last_message()
        if status == -1 and largest_id >= self.num_embeddings:
            return IndexError(f"the model has {self.num_embeddings} tokens, none with the id {largest_id}")
        if status == 1:
            return PromptError(
                f"no room left in the context of {self.context_size} tokens", "give a larger --context-size"
            )
        if status == -2:
            return MemoryShortageError(
                "out of memory during generation", "use a smaller model, or a smaller --context-size"
            )
        return DeviceError(
            f"llama.cpp failed with code {status}{': ' + said if said else ''}", "try --backend transformers"
        )


def _free(library: Any, context: Any, batch: Any) -> None:
    library.llama_batch_free(batch)
    library.llama_free(context)
