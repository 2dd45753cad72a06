"""A shallow draft: a few layers between the target's own embeddings and head. Ids in, logits out, like any model.

Two kinds. One is a small language model on borrowed embeddings. The other also reads the target's features, the inputs
of its head: at index i the token's embedding and the feature of index i - 1 are joined by one product. Features of
tokens the target has not seen are replaced by the draft's own outputs, and what was computed from those is forgotten
when the round ends: the cache that stays holds true features only.
Source: Li et al. 2024 (EAGLE, arXiv:2401.15077) for the second kind; Yan et al. 2024 (arXiv:2402.01528) for depth as
what a draft's latency follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.engine.memory_errors import memory_errors
from specgen.models.layers import LayerStack, Norm
from specgen.models.linear import MatMul
from specgen.models.target_features import TargetFeatures
from specgen.models.transformers_model import PREFILL_CHUNK


@dataclass(frozen=True, slots=True)
class DraftHeadParts:
    """What a shallow draft is put together from.

    Args:
        body: A transformers base model with the draft's layers, norm and rotation; its embeddings are not used.
        embedding: The target's, `[rows, hidden]`.
        head: The target's head, or some of its rows: `[n, hidden]` to `[n, logits]`.
        vocab_size: Logits wanted; further ones are cut.
        columns: `[logits]` ids of the logits, ascending; None: column i is id i.
        join: `[n, 2 * hidden]` to `[n, hidden]`, embedding first, feature second; None: it reads no features.
        features: The target's; needed with `join`.
    """

    body: Any
    embedding: Tensor
    head: MatMul
    vocab_size: int
    columns: Tensor | None = None
    join: MatMul | None = None
    features: TargetFeatures | None = None


class DraftHeadModel:
    """A shallow draft and its cache; keeps the contract of `specgen.engine.contract.LanguageModel`, a row at a time.

    Features that are not known (the target read a text before this draft was there) are no error: the draft then
    begins anew at the first one that is, as if the text began there. Rotation depends on distances only, so nothing
    else changes; it sees less of the text and may be right less often. The target's text is never touched.
    """

    def __init__(self, parts: DraftHeadParts) -> None:
        assert (parts.join is None) == (parts.features is None), "a draft that joins features needs some"
        self.vocab_size = parts.vocab_size
        self.num_embeddings = parts.embedding.shape[0]
        self.columns = parts.columns
        self.length = 0
        self.start = 0
        """Index of the first token it has read; before it, features were not known."""
        self.forward_seconds = 0.0
        self.num_forwards = 0
        body = parts.body
        like = body.norm.weight
        self.device: torch.device = like.device
        self._dtype: torch.dtype = like.dtype
        self._embedding, self._head = parts.embedding, parts.head
        self._join, self._features = parts.join, parts.features
        self._stack = LayerStack(body.layers, body.rotary_emb, body.config, like[None])
        self._norm = Norm(body.norm)
        self._num_true = 0
        """Length of the text whose entries hold after the round: all, or those of true features."""
        self._last: Tensor | None = None
        """Its output at the last index, `[1, hidden]`: the next token's feature until the target's is known."""

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """Bring the cache up to `ids`, of which the target has seen all but the last one at least."""
        self._begin_where_known()
        while self.length < len(ids):
            first = self.length
            last = min(len(ids), first + PREFILL_CHUNK)
            new = torch.tensor(ids[first:last], dtype=torch.int64)
            self._last = self._forward(new, self._known_features(first, last))
            self._num_true = self.length

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Logits behind `ids` and a drafted `tail`, of which the cache may hold a beginning; extends the cache.

        Args:
            ids: The text; the target has seen all of it but the last token at least.
            num_last: 1.
            tail: `[n]` drafted ids.

        Returns:
            float32 `[1, vocab_size]`; see `columns`.
        """
        assert num_last == 1, "a shallow draft gives a row at a time"
        self.feed(ids)
        num_tail = 0 if tail is None else tail.shape[0]
        while tail is not None and self.length < len(ids) + num_tail:
            at = self.length - len(ids)
            self._last = self._forward(tail[at : at + 1], self._last)
            if self._join is None:
                self._num_true = self.length
        assert self._last is not None, "positions already in the cache have no logits any more"
        return self._head(self._last)[:, : self.vocab_size].float()

    def rewind(self, length: int) -> None:
        """Forget what lies after `length` tokens, and all that was computed from features of its own."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        length = min(length, self._num_true)
        if length <= self.start:
            self.reset()
            return
        self.length = self._num_true = length
        self._last = None

    def reset(self) -> None:
        """Forget everything, and give its memory back."""
        self._stack.release()
        self.length = self.start = self._num_true = 0
        self._last = None

    def _begin_where_known(self) -> None:
        """Begin anew behind a gap: the first known feature is that of a later index than the next one needed."""
        if self._features is not None and self._features.first > self.length:
            self.length = self.start = self._num_true = self._features.first

    def _known_features(self, first: int, last: int) -> Tensor | None:
        """The target's features of indices `first - 1` to `last - 2`; zero before the first that is known."""
        features = self._features
        if features is None:
            return None
        known = features.rows(max(first - 1, features.first), max(last - 1, features.first)).to(self.device)
        num_unknown = last - first - known.shape[0]
        if num_unknown == 0:
            return known
        # Where none is known, as for a text of one token, nothing tells how wide they are but the embeddings.
        unknown = torch.zeros(num_unknown, self._embedding.shape[1], dtype=self._dtype, device=self.device)
        return torch.cat([unknown, known]) if known.shape[0] else unknown

    def _forward(self, new: Tensor, features: Tensor | None) -> Tensor:
        """Feed `new` `[n]` with their features; the output at the last one, `[1, hidden]`. A failure empties it."""
        started = perf_counter()
        try:
            with memory_errors():
                hidden = functional.embedding(new.to(self._embedding.device), self._embedding)
                hidden = hidden.to(device=self.device, dtype=self._dtype)
                if self._join is not None:
                    assert features is not None
                    hidden = self._join(torch.cat([hidden, features], dim=-1))
                output = self._norm(self._stack.run(hidden, self.length - self.start)[-1:])
        except BaseException:
            self.reset()
            raise
        self.forward_seconds += perf_counter() - started
        self.num_forwards += 1
        self.length += new.shape[0]
        return output
