"""Things that propose: text so far in, a draft out. Know ids and laws; nothing of text or verification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from specgen.engine.contract import LanguageModel
from specgen.engine.length_policy import LengthPolicy
from specgen.engine.model import memory_errors
from specgen.engine.randomness import PositionNoise, Randomness
from specgen.engine.sampling import Laws, laws, seen_rows
from specgen.engine.verification import Draft
from specgen.errors import DraftError, MemoryShortageError, NumericalError, PairError, SpecgenError
from specgen.settings import SamplingSettings

Failure = DraftError | MemoryShortageError
"""Why a drafter is given up: it broke, or the target needs the memory."""


class Drafter(Protocol):
    """Proposes tokens for the target to check."""

    def feed(self, ids: Sequence[int]) -> None:
        """See the prompt, ahead of the first round; `ids` is a prefix of what `propose` will get.

        Raises:
            DraftError: As in `propose`.
        """

    def propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        """Guess what follows `ids`.

        Args:
            ids: The text so far, never empty.
            limit: Longest draft wanted, at least 1. A shorter or empty one is fine.
            lengths: Asked before each token whether it is wanted.

        Raises:
            DraftError: The drafter is broken; the caller goes on without it.
        """

    def rewind(self, length: int) -> None:
        """Forget what was learned of the text behind its first `length` tokens."""


class NoDrafter:
    """Proposes nothing: the same loop is then plain decoding, the baseline of every comparison."""

    def feed(self, ids: Sequence[int]) -> None:
        """Nothing to see."""

    def propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:  # noqa: ARG002
        return empty_draft()

    def rewind(self, length: int) -> None:
        """Nothing to forget."""


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
        while drafted.shape[0] < limit and lengths.wants_more():
            logits = self.model.logits(ids, 1, tail=drafted)
            seen = seen_rows(ids, drafted, self._vocab_size, self._sampling, self.model.device)
            position = len(ids) + drafted.shape[0]
            noise = None if self._noise is None else self._noise.rows(position, 1)
            law = laws(logits, self._sampling, self._own(None if seen is None else seen[-1:]), self._own(noise))
            # A greedy draft on CUDA is spared the host read: whatever comes of NaN there, the target checks it.
            if (law.probs is not None or lengths.uses_confidence or not logits.is_cuda) and not bool(law.is_finite):
                raise NumericalError("the draft model's logits hold NaN or infinity")
            if law.probs is None:
                column = law.ids
            else:
                column = self._randomness.draw(law.probs[0]).view(1).to(self.model.device)
                rows.append(self._whole(law.probs))
            drafted = torch.cat([drafted, column if self._columns is None else self._columns[column]])
            if lengths.uses_confidence:
                lengths.drew(_confidence(logits, law))
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


def _confidence(logits: Tensor, law: Laws) -> float:
    """Probability of the likeliest token. A host read, which on CUDA waits for the draft's step."""
    if law.probs is not None:
        return float(law.probs.max())
    return float((logits.max() - logits.logsumexp(dim=-1)).exp())


@contextmanager
def draft_errors() -> Iterator[None]:
    """Whatever breaks inside a drafter is a broken draft, not a broken answer.

    Raises:
        DraftError: Anything broke inside the block; the cause is kept.
    """
    try:
        with memory_errors():
            yield
    except DraftError:
        raise
    except Exception as error:
        raise DraftError(_in_a_line(error)) from error


def _in_a_line(error: Exception) -> str:
    """What an error says. Those of Python name no more than a key or a number: their kind is needed with it."""
    kind, said = type(error).__name__, str(error).partition("\n")[0]
    if not said:
        return kind
    return said if isinstance(error, SpecgenError | RuntimeError) else f"{kind}: {said}"


def failure_of(work: Callable[[], object]) -> DraftError | None:
    """Why a drafter could not do what it was told to; None if it could."""
    try:
        with draft_errors():
            work()
    except DraftError as error:
        return error
    return None


def give_up(drafter: Drafter) -> None:
    """Let a drafter give its cache back, of which nobody knows any more what it holds; it may be too broken for it."""
    failure_of(lambda: drafter.rewind(0))


def told(failure: Failure) -> str:
    """The notice that a drafter was given up."""
    if isinstance(failure, MemoryShortageError):
        return f"{failure.message}: the draft was dropped; the text is not affected"
    return f"the drafter failed and was dropped; the text is not affected: {failure}"


def strict_error(failure: Failure) -> SpecgenError:
    """The error that a failed drafter is under `--strict`; its class, and so the exit code, says what went wrong."""
    cause = failure.__cause__ if isinstance(failure, DraftError) else failure
    kind = type(cause) if isinstance(cause, SpecgenError) else PairError
    return kind(f"the drafter failed: {failure}", "leave out --strict to go on without it")


def empty_draft() -> Draft:
    """A draft of no tokens."""
    return Draft(torch.empty(0, dtype=torch.int64))
