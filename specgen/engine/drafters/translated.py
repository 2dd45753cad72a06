"""Drafts with a model that has another vocabulary than the target.

Two ways, both exact. Shared tokens: the draft's distribution is restricted to the tokens that mean the same to both
models and normalized again; it is then verified like any other. Text: the draft writes in its own tokens, and what it
wrote is encoded in the target's; that is a point mass, like a lookup draft.
Source: Timor et al. 2025 (arXiv:2502.05202), Algorithms 4 (token-level intersection) and 2 (string-level exact match).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from specgen.core.comparison import first_difference
from specgen.core.errors import NumericalError
from specgen.engine.contract import DRAFT_NOT_FINITE, LanguageModel, RecordingModel
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler, largest_probability, likeliest
from specgen.engine.verification import Draft

MAX_UNFINISHED = 6
"""A text draft ends after so many passes in turn that gave no token, even if its length policy would go on."""


class Translation(Protocol):
    """Translates between the tokens of the target and of the draft. The text between the two is its own matter."""

    def draft_ids(self, ids: Sequence[int]) -> list[int]:
        """Returns a text of the target's in the draft's tokens, at least one. Any reading of it is correct."""

    def target_ids(self, ids: Sequence[int], written: Sequence[int]) -> tuple[list[int], bool]:
        """Returns the draft's tokens after a text in the target's tokens, and whether they end the text.

        What the draft writes next may change the last of them, and an incomplete character gives none.
        """


@dataclass(frozen=True, slots=True)
class SharedTokens:
    """The tokens that mean the same in both vocabularies.

    Args:
        target_ids: `[shared]` int64, ascending and without duplicates.
        draft_ids: `[shared]` int64, the draft's id of each of them, without duplicates.
    """

    target_ids: Tensor
    draft_ids: Tensor


class TranslatedModel:
    """A draft model that reads the target's tokens.

    Its cache holds the draft's own tokens. Before each pass it is cut to what it has in common with the text, so a
    rejected draft, a removed chat turn and a text that is tokenized in another way as it grows need no special case.

    Args:
        model: The draft model, with an empty cache.
        translation: Between its tokens and the target's.
        shared: The tokens both have; None for text drafts.
        max_positions: Window of the draft model, in its own tokens; None: unknown.
    """

    num_embeddings = sys.maxsize

    def __init__(
        self,
        model: LanguageModel,
        translation: Translation,
        shared: SharedTokens | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.model = model
        self.translation = translation
        self.device = model.device
        self.length = 0
        """Tokens of the target's text that were read."""
        self.forward_seconds, self.num_forwards = 0.0, 0
        self._cached: list[int] = []
        self._max_positions = max_positions
        self.columns = None if shared is None else shared.target_ids.to(model.device)
        """`[shared]` the target's ids of the logits; None: all logits are the draft's own."""
        self._own_columns = None if shared is None else shared.draft_ids.to(model.device)
        self.vocab_size = model.vocab_size if shared is None else shared.draft_ids.shape[0]
        pairs = [] if shared is None else zip(shared.target_ids.tolist(), shared.draft_ids.tolist(), strict=True)
        self._draft_id = dict(pairs)
        self._shared_draft_ids = frozenset(self._draft_id.values())

    def feed(self, ids: Sequence[int]) -> None:
        read = self.translation.draft_ids(ids)
        self._cut(read)
        self.model.feed(read)
        self._cached, self.length = read, len(ids)

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        """Computes the logits after `ids` and `tail`, over `columns`; the tail consists of shared tokens."""
        assert num_last == 1, "a draft needs the last position only"
        logits = self.own_logits(ids, self._tail_ids(tail))
        return logits if self._own_columns is None else self._shared(logits)

    def shared_logits(self, ids: Sequence[int], tail: Tensor) -> Tensor | None:
        """Computes what `logits` does; None if the draft's likeliest token is not shared.

        Raises:
            NumericalError: The draft's logits contain NaN or infinity.
        """
        logits = self.own_logits(ids, self._tail_ids(tail))
        best, _ = _likeliest(logits)
        return self._shared(logits) if best in self._shared_draft_ids else None

    def own_logits(self, ids: Sequence[int], written: Sequence[int]) -> Tensor:
        """Computes the logits after a text and what the draft wrote after it.

        Args:
            ids: The text in the target's tokens.
            written: The draft's own tokens.

        Returns:
            float32 `[1, vocab]`, over the draft's own vocabulary.
        """
        read = [*self.translation.draft_ids(ids), *written]
        self._cut(read[:-1])
        logits = self.model.logits(read, 1)
        self._cached, self.length = read, len(ids)
        return logits

    def num_positions_left(self, ids: Sequence[int]) -> int:
        """Returns how many tokens the draft model's window has room for after a text."""
        if self._max_positions is None:
            return sys.maxsize
        return self._max_positions - len(self.translation.draft_ids(ids))

    def rewind(self, length: int) -> None:
        """Notes that the text ends earlier; the cache is cut before the next pass."""
        self.length = min(self.length, length)

    def reset(self) -> None:
        self.model.reset()
        self._cached, self.length = [], 0

    def _shared(self, logits: Tensor) -> Tensor:
        """Selects the logits of shared tokens from `[1, width]`."""
        missing = self.model.vocab_size - logits.shape[1]
        if missing:
            logits = functional.pad(logits, (0, missing), value=-torch.inf)
        return logits[:, self._own_columns]

    def _tail_ids(self, tail: Tensor | None) -> list[int]:
        return [] if tail is None else [self._draft_id[token] for token in tail.tolist()]

    def _cut(self, read: Sequence[int]) -> None:
        """Cuts the cache to what it has in common with `read`."""
        same = first_difference(self._cached, read)
        if same is not None and same < self.model.length:
            self.model.rewind(same)
        del self._cached[self.model.length :]


class _TranslatedDrafter(ModelDrafter):
    """Drafts with a model that has another vocabulary.

    Args:
        model: The draft model.
        vocab_size: Width of the target's distributions.
        sampler: The run's.
    """

    def __init__(self, model: TranslatedModel, vocab_size: int, sampler: Sampler) -> None:
        super().__init__(model, vocab_size, sampler, columns=model.columns)
        self._translated = model
        self._recording: RecordingModel | None = model.model if isinstance(model.model, RecordingModel) else None

    def _num_positions_left(self, ids: Sequence[int]) -> int:
        return self._translated.num_positions_left(ids)


class SharedTokenDrafter(_TranslatedDrafter):
    """Proposes shared tokens; a draft ends where the model would rather write a token that the target lacks.

    Whether it ends depends on the distribution only, never on a drawn token, so the target's distribution is kept.
    """

    def _next_logits(self, ids: Sequence[int], draft_ids: Tensor) -> Tensor | None:
        return self._translated.shared_logits(ids, draft_ids)


class TextDrafter(_TranslatedDrafter):
    """Proposes what the model writes, encoded in the target's tokens. The model writes its likeliest tokens.

    Further text could change the last token: `.` may become `.\\n\\n`. It is proposed nevertheless. Waiting until it is
    certain took one more pass of the draft in each round, and after right text the last token is mostly the target's
    own: at 99 (the same vocabulary) and 90 % (SmolLM2 for Qwen2.5) of the places in 24 answers.
    """

    def _propose_by_logits(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        written: list[int] = []
        found: list[int] = []
        num_drafted = num_unfinished = 0
        confidence, has_ended = 1.0, False
        num_left = self._num_positions_left(ids)
        while num_drafted < limit and not has_ended and len(written) < num_left and draft_length.should_draft():
            token, probability = _likeliest(self._translated.own_logits(ids, written))
            written.append(token)
            confidence *= probability
            found, has_ended = self._translated.translation.target_ids(ids, written)
            num_new = min(len(found), limit) - num_drafted
            if num_new > 0:
                _report(draft_length, num_new, confidence)
                num_drafted += num_new
                num_unfinished, confidence = 0, 1.0
                continue
            draft_length.on_pass(probability)
            num_unfinished += 1
            if num_unfinished == MAX_UNFINISHED:
                break
        if written and not num_drafted and draft_length.uses_confidence:
            draft_length.on_token(0.0, 0)
        return Draft(torch.tensor(found[:limit], dtype=torch.int64), num_passes=len(written))


def _report(draft_length: LengthPolicy, num_tokens: int, confidence: float) -> None:
    """Reports the tokens that a pass gave, which have one confidence together."""
    if draft_length.uses_confidence:
        for index in range(num_tokens):
            draft_length.on_token(confidence ** (1 / num_tokens), int(index == 0))


def _likeliest(logits: Tensor) -> tuple[int, float]:
    """Returns the likeliest token of `[1, vocab]` logits and its probability.

    Raises:
        NumericalError: The logits contain NaN or infinity.
    """
    top, best = likeliest(logits)
    if not bool(top.isfinite().all()):
        raise NumericalError(DRAFT_NOT_FINITE)
    return int(best), largest_probability(logits)
