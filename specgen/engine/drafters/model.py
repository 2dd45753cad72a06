"""A drafter that runs a small language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.core.errors import NumericalError
from specgen.core.settings import SamplingSettings
from specgen.engine.contract import LanguageModel
from specgen.engine.draft_length.policy import LengthPolicy
from specgen.engine.drafters.base import draft_errors, empty_draft
from specgen.engine.randomness import PositionNoise, Randomness
from specgen.engine.sampling import TokenDistributions, seen_rows, token_distributions
from specgen.engine.verification import Draft


class ModelDrafter:
    """Proposes what a smaller model would write, by the same sampling rule as the target's.

    Args:
        model: The draft model, its logits no wider than the target's.
        vocab_size: Width of the target's laws; the draft gives ids from its own width on probability zero.
        sampling: Processors, applied to the draft as to the target. Greedy drafts are point masses.
        randomness: The run's one source of chance.
        max_positions: Window of the draft model; past it nothing is proposed. None: unknown.
        noise: The run's position noise, if chance is tied to positions.
        columns: `[logits]` ids of the model's logits, where they are not simply 0, 1, 2, ...: all others have
            probability zero.
    """

    def __init__(
        self,
        model: LanguageModel,
        vocab_size: int,
        sampling: SamplingSettings,
        randomness: Randomness,
        max_positions: int | None = None,
        noise: PositionNoise | None = None,
        columns: Tensor | None = None,
    ) -> None:
        self.model = model
        self._noise = noise
        self._columns = columns
        self._vocab_size = vocab_size
        self._sampling = sampling
        self._randomness = randomness
        self._max_positions = max_positions

    def feed(self, ids: Sequence[int]) -> None:
        if self._can_read(ids):
            with draft_errors():
                self.model.feed(ids)

    @torch.inference_mode()
    def propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        if self._max_positions is not None:
            limit = min(limit, self._max_positions - len(ids))
        if limit < 1 or not self._can_read(ids):
            return empty_draft()
        with draft_errors():
            return self._propose(ids, limit, lengths)

    def _propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        drafted = torch.empty(0, dtype=torch.int64, device=self.model.device)
        rows: list[Tensor] = []
        while drafted.shape[0] < limit and lengths.should_draft():
            logits = self.model.logits(ids, 1, tail=drafted)
            seen = seen_rows(ids, drafted, self._vocab_size, self._sampling, self.model.device)
            position = len(ids) + drafted.shape[0]
            noise = None if self._noise is None else self._noise.rows(position, 1)
            distribution = token_distributions(
                logits, self._sampling, self._own(None if seen is None else seen[-1:]), self._own(noise)
            )
            # A greedy draft on CUDA is spared the host read: whatever comes of NaN there, the target checks it.
            if (distribution.probs is not None or lengths.uses_confidence or not logits.is_cuda) and not bool(
                distribution.is_finite
            ):
                raise NumericalError("the draft model's logits hold NaN or infinity")
            if distribution.probs is None:
                column = distribution.ids
            else:
                column = self._randomness.draw(distribution.probs[0]).view(1).to(self.model.device)
                rows.append(self._whole(distribution.probs))
            drafted = torch.cat([drafted, column if self._columns is None else self._columns[column]])
            if lengths.uses_confidence:
                lengths.on_token(_confidence(logits, distribution))
        return Draft(drafted, torch.cat(rows) if rows else None)

    def rewind(self, length: int) -> None:
        self.model.rewind(min(length, self.model.length))

    def _own(self, rows: Tensor | None) -> Tensor | None:
        """Of `[n, vocab]` what the model's own columns are."""
        if rows is None:
            return None
        return rows[:, : self.model.vocab_size] if self._columns is None else rows[:, self._columns.to(rows.device)]

    def _whole(self, probs: Tensor) -> Tensor:
        """A law over the model's columns as one over the target's vocabulary."""
        if self._columns is None:
            return torch.nn.functional.pad(probs, (0, self._vocab_size - probs.shape[-1]))
        return probs.new_zeros(probs.shape[0], self._vocab_size).index_copy_(1, self._columns, probs)

    def _can_read(self, ids: Sequence[int]) -> bool:
        """Whether the draft has room for the text and an embedding for each of its new tokens."""
        if self._max_positions is not None and len(ids) > self._max_positions:
            return False
        return max(ids[self.model.length :], default=0) < self.model.num_embeddings


def _confidence(logits: Tensor, distribution: TokenDistributions) -> float:
    """Probability of the likeliest token. A host read, which on CUDA waits for the draft's step."""
    if distribution.probs is not None:
        return float(distribution.probs.max())
    return float((logits.max() - logits.logsumexp(dim=-1)).exp())
