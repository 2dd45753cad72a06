"""Draft heads: a few decoder layers between the target's own embeddings and head.

There are two kinds. One is a small language model on the target's embeddings. The other, as in EAGLE and in the
multi-token-prediction heads (MTP) of checkpoints, also reads the target's features, the inputs of its head: at index i
it joins the token's embedding and the feature of index i - 1 by one matrix product. For drafted tokens, which the
target has not seen, its own outputs replace the features. Cache entries computed from such outputs are dropped when the
round ends: only entries of true features stay.

Sources: Li et al. 2024 (EAGLE, arXiv:2401.15077) and DeepSeek-AI 2024 (MTP, arXiv:2412.19437) for the second kind; Yan
et al. 2024 (arXiv:2402.01528): the latency of a draft follows its depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from specgen.engine.memory_errors import memory_errors
from specgen.engine.transfer import ids_on, moved
from specgen.models.cached_model import PREFILL_CHUNK
from specgen.models.target_features import TargetFeatures

if TYPE_CHECKING:
    from specgen.models.draft_head_layers import FeatureJoin, HeadLayers


@dataclass(frozen=True, slots=True)
class DraftHeadParts:
    """The parts of a draft head.

    Args:
        layers: The draft's layers.
        norm: The draft's last norm, with a `weight`.
        embedding: The target's, `[rows, hidden]`.
        head: The target's head, or some of its rows: `[n, hidden]` to `[n, logits]`.
        dtype: The type it computes in.
        vocab_size: Logits are cut to this width.
        columns: `[logits]` ids of the logits, ascending; None: column i is id i.
        join: Joins embeddings and features; None: it reads no features.
        features: The target's; required with `join`.
        skips_first: It has no entry for a token before which no feature is known, as the first one of a text. Otherwise
            it reads zeros in place of that feature.
    """

    layers: HeadLayers
    norm: nn.Module
    embedding: Tensor
    head: nn.Module
    dtype: torch.dtype
    vocab_size: int
    columns: Tensor | None = None
    join: FeatureJoin | None = None
    features: TargetFeatures | None = None
    skips_first: bool = False

    @property
    def like(self) -> Tensor:
        """Returns an empty tensor of the type and device it computes in."""
        return torch.empty(0, dtype=self.dtype, device=self.norm.weight.device)  # type: ignore[arg-type]


class DraftHeadModel:
    """A draft head and its cache; implements `specgen.engine.contract.LanguageModel` for one row at a time.

    Some features may be unknown, because the target read a text before this draft was loaded. The draft then starts
    over at the first known feature, as if the text began there. Rotary embeddings depend on distances only, so nothing
    else changes: the draft sees less of the text and may be accepted less often, but the target's text stays the same.
    """

    def __init__(self, parts: DraftHeadParts) -> None:
        assert (parts.join is None) == (parts.features is None), "join and features belong together"
        self.vocab_size = parts.vocab_size
        self.num_embeddings = parts.embedding.shape[0]
        self.columns = parts.columns
        self.length = 0
        self.start = 0
        """Index of the first token in the cache; earlier features are unknown."""
        self.forward_seconds = 0.0
        self.num_forwards = 0
        self.device = parts.like.device
        self._dtype = parts.dtype
        self._embedding, self._head = parts.embedding, parts.head
        self._join, self._features = parts.join, parts.features
        self._layers, self._norm = parts.layers, parts.layers.last_norm(parts.norm)
        self.can_branch = parts.layers.can_branch
        self._num_skipped = int(parts.skips_first)
        self._num_true = 0
        """Tokens whose cache entries stay after the round: all, or those computed from true features."""
        self._last: Tensor | None = None
        """`[1, hidden]`: the output at the last position."""
        self._row_outputs: Tensor | None = None
        """`[rows, hidden]`: outputs at the rows of a tree after the last position."""

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """Extends the cache to `ids`; the target must have seen all of them but the last."""
        self._skip_unknown_features(len(ids))
        while self.length < len(ids):
            first = self.length
            last = min(len(ids), first + PREFILL_CHUNK)
            new = ids_on(self._embedding.device, ids[first:last])
            self._last = self._forward(new, self._known_features(first, last))
            self._num_true = self.length

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Returns the logits after `ids` and a drafted `tail`; extends the cache by what it lacks.

        Args:
            ids: The text; the target must have seen all of it but the last token.
            num_last: 1.
            tail: `[n]` drafted ids.

        Returns:
            float32 `[1, vocab_size]`; see `columns`.
        """
        assert num_last == 1, "a draft head computes one row of logits at a time"
        self.feed(ids)
        num_tail = 0 if tail is None else tail.shape[0]
        while tail is not None and self.length < len(ids) + num_tail:
            index = self.length - len(ids)
            self._last = self._forward(tail[index : index + 1], self._last)
            if self._join is None:
                self._num_true = self.length
        return self._logits(self._last)

    @torch.inference_mode()
    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        """As in `TreeModel`, after `logits` of the text; parents are rows of earlier calls."""
        assert self._last is not None, "the output of the last position is not stored"
        known = self._last if self._row_outputs is None else torch.cat([self._last, self._row_outputs])
        features = None if self._join is None else known[[parent + 1 for parent in parents]]
        position = self.length - self.start
        outputs = self._counted(
            lambda: self._norm(self._layers.run_rows(self._layer_inputs(tokens, features), position, parents))
        )
        self._row_outputs = torch.cat([known[1:], outputs])
        return self._logits(outputs)

    def _logits(self, outputs: Tensor | None) -> Tensor:
        assert outputs is not None, "the logits of cached positions are not stored"
        logits: Tensor = self._head(outputs)[:, : self.vocab_size]
        return logits.float()

    def rewind(self, length: int) -> None:
        """Drops positions from `length` on, and all that were computed from the draft's own outputs."""
        assert 0 <= length <= self.length, "a cache can't be rewound forward"
        length = min(length, self._num_true)
        self._row_outputs = None
        self._layers.drop_rows()
        if length <= self.start:
            self._rewind_to_start()
            return
        self.length = self._num_true = length
        self._last = None

    def reset(self) -> None:
        """Empties the cache and frees its memory."""
        self._layers.release()
        self._restart()

    def _rewind_to_start(self) -> None:
        self.reset()

    def _restart(self) -> None:
        self.length = self.start = self._num_true = 0
        self._last = self._row_outputs = None

    def _skip_unknown_features(self, num_tokens: int) -> None:
        """Starts over after a gap: the first token that can be read is a later one than the next one needed."""
        if self._features is None:
            return
        first = self._features.first + self._num_skipped
        if first > self.length:
            self.length = self.start = self._num_true = min(first, num_tokens)
            # Zeros are the best guess if no token of the text can be read.
            self._last = self._zero_output()

    def _zero_output(self) -> Tensor:
        return torch.zeros(1, self._embedding.shape[1], dtype=self._dtype, device=self.device)

    def _known_features(self, first: int, last: int) -> Tensor | None:
        """Returns the target's features of indices `first - 1` to `last - 2`; zeros before the first known one."""
        features = self._features
        if features is None:
            return None
        known = features.rows(max(first - 1, features.first), max(last - 1, features.first)).to(self.device)
        num_unknown = last - first - known.shape[0]
        if num_unknown == 0:
            return known
        # If no feature is known, as for a text of one token, only the embeddings show the width.
        unknown = torch.zeros(num_unknown, self._embedding.shape[1], dtype=self._dtype, device=self.device)
        return torch.cat([unknown, known]) if known.shape[0] else unknown

    def _forward(self, new: Tensor, features: Tensor | None) -> Tensor:
        """Feeds `new` `[n]` with its features; returns the last output, `[1, hidden]`."""
        output = self._counted(lambda: self._run(new, features))
        self._row_outputs = None
        self.length += new.shape[0]
        return output

    def _counted(self, work: Callable[[], Tensor]) -> Tensor:
        """Does the work of a pass. A failure empties the cache."""
        started = perf_counter()
        try:
            with memory_errors():
                output = work()
        except BaseException:
            self.reset()
            raise
        self.forward_seconds += perf_counter() - started
        self.num_forwards += 1
        return output

    def _run(self, new: Tensor, features: Tensor | None) -> Tensor:
        """Computes the pass of `_forward`."""
        output: Tensor = self._norm(self._layers.run(self._layer_inputs(new, features), self.length - self.start)[-1:])
        return output

    def _layer_inputs(self, new: Tensor, features: Tensor | None) -> Tensor:
        """Returns the inputs of the first layer for `new` `[n]`, `[n, hidden]`."""
        hidden = functional.embedding(moved(new, self._embedding.device), self._embedding)
        hidden = hidden.to(device=self.device, dtype=self._dtype)
        if self._join is None:
            return hidden
        assert features is not None, "they belong to the join"
        joined: Tensor = self._join(hidden, features)
        return joined
