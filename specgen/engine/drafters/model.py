"""Drafts with a small language model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from time import perf_counter

import torch
from torch import Tensor

from specgen.core.errors import NumericalError
from specgen.engine.contract import DRAFT_NOT_FINITE, GreedyDrafter, LanguageModel, RecordingModel
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.drafters.ahead import AheadChoice, AheadTiming
from specgen.engine.drafters.base import draft_errors, empty_draft
from specgen.engine.inference_mode import in_inference_mode
from specgen.engine.sampling import Sampler, TokenDistributions, largest_probability, token_distributions
from specgen.engine.seen_tokens import seen_tokens
from specgen.engine.verification import Draft


class ModelDrafter:
    """Proposes what a smaller model would write, with the same processors as the target.

    Args:
        model: The draft model; its logits are no wider than the target's.
        vocab_size: Width of the target's distributions; ids outside the draft's vocabulary have probability zero.
        sampler: The run's. Greedy drafts are point masses.
        max_positions: Window of the draft model; past it nothing is proposed. None: unknown.
        columns: `[logits]` ids of the model's logits, if they are not 0, 1, 2, ...: all other ids have
            probability zero.
    """

    def __init__(
        self,
        model: LanguageModel,
        vocab_size: int,
        sampler: Sampler,
        max_positions: int | None = None,
        columns: Tensor | None = None,
    ) -> None:
        self.model = model
        self._vocab_size = vocab_size
        self._sampler = sampler
        self._max_positions = max_positions
        self._columns = columns
        self._seen = seen_tokens(sampler.settings, vocab_size, model.device)
        is_argmax = sampler.settings.is_greedy and sampler.settings.repetition_penalty == 1.0
        self._on_device = model if is_argmax and isinstance(model, GreedyDrafter) else None
        self._recording: RecordingModel | None = model if isinstance(model, RecordingModel) else None
        self.drafts_ahead: bool | None = None
        """Whether the next token is drafted while the host waits for the confidence of the last one. If the policy then
        ends the draft, that step is wasted. Otherwise the device waits for the policy at every token. None: whichever
        is measured to be faster."""
        self._ahead = AheadChoice()
        self._timing: AheadTiming | None = None

    def feed(self, ids: Sequence[int]) -> None:
        if self._can_read(ids):
            with draft_errors():
                self.model.feed(ids)

    @in_inference_mode
    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        limit = min(limit, self._num_positions_left(ids))
        if limit < 1 or not self._can_read(ids):
            return empty_draft()
        with draft_errors():
            return self._propose(ids, limit, draft_length)

    def _propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        num_warmups = self._num_warmups()
        draft = self._make_draft(ids, limit, draft_length)
        if self._recording is None:
            return draft
        is_warmup = self._recording.num_warmups > num_warmups
        if not is_warmup and self._timing is not None:
            self._ahead.observe(self._timing)
        failure = self._recording.take_failure()
        if not is_warmup and failure is None:
            return draft
        return replace(draft, is_warmup=is_warmup, recording_failure=failure)

    def _make_draft(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        if self._on_device is not None:
            return self._propose_on_device(self._on_device, ids, limit, draft_length)
        return self._propose_by_logits(ids, limit, draft_length)

    def _propose_on_device(
        self, model: GreedyDrafter, ids: Sequence[int], limit: int, draft_length: LengthPolicy
    ) -> Draft:
        """Drafts the likeliest tokens; reads nothing but confidences, and those only if the policy wants them."""
        reads = draft_length.uses_confidence
        is_ahead = reads and (self._ahead.is_ahead if self.drafts_ahead is None else self.drafts_ahead)
        count = num_launched = 0
        num_read = self._num_unread(ids)
        started = perf_counter()
        while count < limit and draft_length.should_draft():
            count += 1
            num_wanted = min(count + is_ahead, limit)
            for index in range(num_launched, num_wanted):
                model.draft_token(ids, index)
                if reads:
                    model.send_confidence(index)
            num_launched = num_wanted
            if reads:
                confidence = model.confidence(count - 1)
                if isnan(confidence):
                    raise NumericalError(DRAFT_NOT_FINITE)
                draft_length.on_token(confidence)
        self._timing = AheadTiming(perf_counter() - started, count, num_launched, is_ahead) if reads and count else None
        is_finite = model.is_draft_finite() if count else None
        return Draft(model.drafted_ids(count), is_finite=is_finite, pass_rows=_rows_of_chain(num_read, count))

    def _propose_by_logits(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        draft_ids = torch.empty(0, dtype=torch.int64, device=self.model.device)
        if self._seen is not None:
            self._seen.update(ids)
        rows: list[Tensor] = []
        finite: list[Tensor] = []
        num_passes: int | None = None
        num_read = self._num_unread(ids)
        while draft_ids.shape[0] < limit and draft_length.should_draft():
            logits = self._next_logits(ids, draft_ids)
            if logits is None:
                num_passes = draft_ids.shape[0] + 1
                if draft_length.uses_confidence:
                    draft_length.on_token(0.0)
                break
            distribution = self._distribution(logits, len(ids), draft_ids)
            if logits.is_cuda:
                # The target's verdict reads it: a read here would stop the device at every token.
                finite.append(distribution.is_finite)
            elif not bool(distribution.is_finite):
                raise NumericalError(DRAFT_NOT_FINITE)
            if distribution.probs is None:
                column = distribution.ids
            else:
                column = self._sampler.randomness.draw(distribution.probs[0]).view(1).to(self.model.device)
                rows.append(self._over_target_vocab(distribution.probs))
            draft_ids = torch.cat([draft_ids, column if self._columns is None else self._columns[column]])
            if draft_length.uses_confidence:
                draft_length.on_token(_confidence(logits, distribution))
        is_finite = torch.stack(finite).all() if finite else None
        return Draft(
            draft_ids,
            torch.cat(rows) if rows else None,
            is_finite=is_finite,
            num_passes=num_passes,
            pass_rows=_rows_of_chain(num_read, draft_ids.shape[0] if num_passes is None else num_passes),
        )

    def rewind(self, length: int) -> None:
        self.model.rewind(min(length, self.model.length))

    def release(self) -> None:
        self.model.reset()

    def _num_unread(self, ids: Sequence[int]) -> int:
        """Returns how many tokens of the text the next pass reads."""
        return max(len(ids) - self.model.length, 1)

    def _num_warmups(self) -> int:
        return 0 if self._recording is None else self._recording.num_warmups

    def _distribution(self, logits: Tensor, length: int, draft_ids: Tensor) -> TokenDistributions:
        """Computes the distribution of the token after `length` tokens and `draft_ids`, over the model's own logits."""
        settings, noise = self._sampler.settings, self._sampler.noise
        seen = None if self._seen is None else self._seen.row(draft_ids)
        row = None if noise is None else noise.rows(length + draft_ids.shape[0], 1)
        width = logits.shape[1]
        return token_distributions(logits, settings, self._own_columns(seen, width), self._own_columns(row, width))

    def _own_columns(self, rows: Tensor | None, width: int) -> Tensor | None:
        """Selects from `[n, vocab]` the columns of logits of this width."""
        if rows is None:
            return None
        return rows[:, :width] if self._columns is None else rows[:, self._columns.to(rows.device)]

    def _over_target_vocab(self, probs: Tensor) -> Tensor:
        """Extends `[n, logits]` probabilities to the target's vocabulary with zeros."""
        if self._columns is None:
            return torch.nn.functional.pad(probs, (0, self._vocab_size - probs.shape[-1]))
        return probs.new_zeros(probs.shape[0], self._vocab_size).index_copy_(1, self._columns, probs)

    def _next_logits(self, ids: Sequence[int], draft_ids: Tensor) -> Tensor | None:
        """Computes the logits after `ids` and `draft_ids`, `[1, logits]`; None ends the draft before its next token."""
        return self.model.logits(ids, 1, tail=draft_ids)

    def _num_positions_left(self, ids: Sequence[int]) -> int:
        """Returns how many tokens the draft's window has room for after `ids`; negative if `ids` is too long."""
        return sys.maxsize if self._max_positions is None else self._max_positions - len(ids)

    def _can_read(self, ids: Sequence[int]) -> bool:
        """Checks that the text fits the draft's window and each new token has an embedding."""
        if self._num_positions_left(ids) < 0:
            return False
        return max(ids[self.model.length :], default=0) < self.model.num_embeddings


class MaskedDrafter(ModelDrafter):
    """Drafts with a model whose vocabulary differs from the target's in a few ids, which it never proposes.

    The draft's distribution is what is left without them, so verification keeps the target's distribution.

    Args:
        model: The draft model.
        vocab_size: Width of the target's distributions.
        sampler: The run's.
        max_positions: As in `ModelDrafter`.
        masked_ids: `[masked]` int64 ids with other meanings.
    """

    def __init__(
        self, model: LanguageModel, vocab_size: int, sampler: Sampler, max_positions: int | None, masked_ids: Tensor
    ) -> None:
        super().__init__(model, vocab_size, sampler, max_positions)
        self._masked_ids = masked_ids.to(model.device)
        # A model that feeds its own likeliest token back knows of no mask.
        self._on_device = None

    def _next_logits(self, ids: Sequence[int], draft_ids: Tensor) -> Tensor | None:
        logits, masked = self.model.logits(ids, 1, tail=draft_ids), self._masked_ids
        if logits.shape[1] < self.model.vocab_size:
            # Not always: on CUDA, where logits are never narrower, the host would wait for this.
            masked = masked[masked < logits.shape[1]]
        return logits.index_fill(1, masked, -torch.inf)


def _rows_of_chain(num_read: int, num_passes: int) -> tuple[int, ...]:
    """Returns the tokens of each pass: the first one reads text, each further one the token before."""
    return (num_read, *[1] * (num_passes - 1)) if num_passes else ()


def _confidence(logits: Tensor, distribution: TokenDistributions) -> float:
    """Returns the probability of the likeliest token. A host read, which on CUDA waits for the draft's step."""
    if distribution.probs is not None:
        return float(distribution.probs.max())
    return largest_probability(logits)
