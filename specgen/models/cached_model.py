"""A language model with a key-value cache: what all backends on torch have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor, nn

from specgen.engine.inference_mode import in_inference_mode
from specgen.engine.memory_errors import memory_errors
from specgen.engine.transfer import ids_on, moved
from specgen.models.target_features import TargetFeatures

Result = TypeVar("Result")

PREFILL_CHUNK = 512
"""Tokens of one prefill pass: bounds the memory for attention and the wait after Ctrl-C."""


class CachedModel(ABC):
    """Owner of a model's key-value cache.

    Invariant: between rounds the cache contains a prefix of `ids[:-1]`. The next call feeds what is missing, which is
    the last token at least. So a fully accepted draft, a rejected one and a new chat turn need no special case.

    Args:
        vocab_size: Logits are cut to this width: ids from here on are padding rows or unknown to the other model.
        num_embeddings: Ids from here on can't be fed.
        device: Where ids are fed and logits returned.
    """

    switch_length: int | None = None
    """The model reads a longer text with other rotary frequencies (LongRoPE), the tokens before this length, too.

    A text's logits follow from the text alone, whatever was drafted or chunked: where a text crosses this length, all
    of it is read again. So does transformers' `generate` for Phi-3 and Phi-MoE. For other classes with LongRoPE, it
    keeps the old keys of a text that crosses, and the frequencies then depend on where the prompt ended.
    """

    draft_limit: int | None = None
    """Tokens after this length are fed one by one: each has rotary frequencies of its own (dynamic NTK scaling).

    It is known once the prompt is fed.
    """

    is_recurrent: bool = False
    """Whether a layer has a recurrent state, known after the first pass.

    After a rejected draft, the next pass then feeds the accepted tokens again.
    """

    def __init__(self, vocab_size: int, num_embeddings: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.num_embeddings = num_embeddings
        self.device = device
        self.length = 0
        self._is_long = False
        """Whether the cache belongs to a text longer than `switch_length`."""
        self._features: TargetFeatures | None = None
        self.forward_seconds = 0.0
        """Time inside the model's forward, summed; on CUDA the time until the kernels were launched."""
        self.num_forwards = 0

    @property
    def target_features(self) -> TargetFeatures | None:
        """Inputs of the head by position, if a draft head reads them: see `record_target_features`."""
        return self._features

    def record_target_features(self) -> TargetFeatures:
        """Records the head's inputs from the next pass on; a second call returns the same record."""
        if self._features is None:
            self._features = TargetFeatures(self.length)
        return self._features

    @in_inference_mode
    def feed(self, ids: Sequence[int]) -> None:
        """Brings the cache up to `ids`, without logits."""
        self._feed(ids)
        self._end_of_feed()

    @in_inference_mode
    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Returns the logits at the last positions of `ids` followed by `tail`; extends the cache by what it lacks.

        Args:
            ids: The text; its first `self.length` tokens must be what the cache holds.
            num_last: Positions wanted, counted from the end; none of them may be in the cache already.
            tail: `[n]` ids that may be on a device: drafted tokens, fed without a host read. Its beginning may be in
                the cache already.

        Returns:
            float32 `[num_last, vocab_size]`, on the model's device.
        """
        num_tail = 0 if tail is None else tail.shape[0]
        num_missing = len(ids) + num_tail - self.length
        assert 1 <= num_last <= num_missing, "positions already in the cache have no logits any more"
        num_tokens = len(ids) + num_tail
        num_short = 0 if self.switch_length is None else self.switch_length - (num_tokens - num_last)
        if 0 < num_short < num_last:
            return self._logits_around_switch(ids, tail, num_short, num_last - num_short)
        self._choose_frequencies(num_tokens)
        num_fed = num_tokens - max(num_last, self.prefill_chunk)
        if num_fed >= self._first_pass_end:
            self._feed(ids[: max(self.length, num_fed)])
        if num_tail and self.length <= len(ids):
            self._before_draft()
        new = self._tensor(ids[self.length :])
        if tail is not None and num_tail:
            new = torch.cat([new, moved(tail[max(0, self.length - len(ids)) :], self.device)])
        return self._forward(new, num_last)

    def _logits_around_switch(self, ids: Sequence[int], tail: Tensor | None, num_short: int, num_long: int) -> Tensor:
        """Returns the logits of rows on both sides of `switch_length`, each with its own frequencies."""
        assert self.switch_length is not None
        num_drafted = max(self.switch_length - len(ids), 0)
        short = self.logits(ids[: self.switch_length], num_short, None if tail is None else tail[:num_drafted]).clone()
        return torch.cat([short, self.logits(ids, num_long, tail)])

    def _choose_frequencies(self, num_tokens: int) -> None:
        """Empties the cache if a text of this length needs other rotary frequencies than the cached one."""
        is_long = self.switch_length is not None and num_tokens > self.switch_length
        if is_long != self._is_long and self.length:
            self.reset()
        self._is_long = is_long

    @property
    def _first_pass_end(self) -> int:
        """Least end of the next pass: the backend chooses the frequencies by the last position of a pass."""
        return self.switch_length + 1 if self._is_long and self.switch_length is not None else 0

    def rewind(self, length: int) -> None:
        """Shortens the cache to at most `length` tokens: to the longest prefix that the model can return to."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        kept = self._cut(length) if length else 0
        if not kept:
            self._release()
        self.length = kept
        self._rewind_features(length)

    def reset(self) -> None:
        """Empties the cache and frees its memory."""
        self._release()
        self.length = 0
        self._rewind_features(0)

    def _rewind_features(self, length: int) -> None:
        if self.target_features is not None:
            self.target_features.rewind(length)

    @property
    def prefill_chunk(self) -> int:
        """Tokens of one prefill pass."""
        return PREFILL_CHUNK

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The weights."""

    @abstractmethod
    def _release(self) -> None:
        """Frees the cache's memory."""

    @abstractmethod
    def _cut(self, length: int) -> int:
        """Shortens the cache to at most `length` tokens, at least 1.

        Returns:
            How many it holds now; 0 if it must be emptied.
        """

    @abstractmethod
    def _run(self, new: Tensor, num_last: int) -> Tensor:
        """Computes the pass itself: `new` `[n]`, after the cached tokens, to logits `[num_last, width]`."""

    def _end_of_feed(self) -> None:  # noqa: B027  most models can cut anywhere
        """Notes that the cache holds a text that a later one may start with."""

    def _before_draft(self) -> None:  # noqa: B027
        """Notes that the next pass feeds drafted tokens, which may be rejected."""

    def _feed(self, ids: Sequence[int]) -> None:
        self._choose_frequencies(len(ids))
        while len(ids) > self.length:
            last = max(self.length + self.prefill_chunk, self._first_pass_end)
            self._forward(self._tensor(ids[self.length : last]), 1)

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return ids_on(self.device, ids)

    def _forward(self, new: Tensor, num_last: int) -> Tensor:
        """Feeds `new` `[n]`; returns the logits of the last positions, as `logits` does."""
        return self._counted(new.shape[0], lambda: self._run(new, num_last)[:, : self.vocab_size].float())

    def _counted(self, num_new: int, work: Callable[[], Result]) -> Result:
        """Does a pass that feeds `num_new` tokens. A failure empties the cache."""
        started = perf_counter()
        try:
            with memory_errors():
                result = work()
        except BaseException:
            # Some layers may hold the new tokens and others not.
            self.reset()
            raise
        self.forward_seconds += perf_counter() - started
        self.num_forwards += 1
        self.length += num_new
        return result
