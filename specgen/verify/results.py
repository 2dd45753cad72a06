"""Defines the results of `specgen verify`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specgen.core.results import BatchInvarianceCheck, LogitGap, RunInfo

Verdict = Literal["same", "near-tie", "different"]


@dataclass(frozen=True, slots=True)
class DistributionError:
    """The difference between the distribution of the decoding loop and the target's, on a toy model.

    Args:
        processors: The sampling settings of this check.
        num_outcomes: Number of outcomes of the random choices, all enumerated.
        error: Largest difference of a text's probability.
    """

    processors: str
    num_outcomes: int
    error: float

    @property
    def is_exact(self) -> bool:
        """Whether the distributions are equal up to the rounding of float64."""
        return self.error < 1e-12


class _Comparison:
    """Compares two greedy answers.

    Args:
        position: Index of the first token that differs; None if the answers are equal.
        gap: Between the logits of the two tokens at that index; None if the answers are equal.
    """

    __slots__ = ()
    position: int | None
    gap: LogitGap | None

    @property
    def verdict(self) -> Verdict:
        """Whether the texts are equal, differ only by rounding, or differ."""
        if self.gap is None:
            return "same"
        return "near-tie" if self.gap.is_near_tie else "different"


@dataclass(frozen=True, slots=True)
class TextCheck(_Comparison):
    """A comparison of a greedy answer with a draft and the target's greedy answer without one.

    Args:
        prompt: The prompt as text.
        num_tokens: Tokens compared.
        num_drafted: Draft tokens proposed.
        num_accepted: Draft tokens accepted.
    """

    prompt: str
    num_tokens: int
    num_drafted: int
    num_accepted: int
    position: int | None = None
    gap: LogitGap | None = None


@dataclass(frozen=True, slots=True)
class ReferenceCheck(_Comparison):
    """A comparison of the target's greedy answer, without a draft, with that of transformers' own code.

    Args:
        prompt: The prompt as text.
        num_tokens: Tokens compared.
        logit_error: Norm of the difference of the logits over the whole text, relative to the norm of the logits.
    """

    prompt: str
    num_tokens: int
    logit_error: float
    position: int | None = None
    gap: LogitGap | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The results of all checks of `specgen verify`.

    Args:
        info: The models and settings.
        distributions: Checks of the decoding loop on toy models.
        batch_invariance: Whether later tokens of a pass change earlier logits.
        texts: Comparisons of greedy answers.
        references: Comparisons with transformers' own code; empty if none were requested.
        notices: Notices from loading.
    """

    info: RunInfo
    distributions: tuple[DistributionError, ...]
    batch_invariance: BatchInvarianceCheck
    texts: tuple[TextCheck, ...]
    references: tuple[ReferenceCheck, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def comparisons(self) -> tuple[TextCheck | ReferenceCheck, ...]:
        """All comparisons of greedy answers."""
        return (*self.texts, *self.references)

    @property
    def has_real_difference(self) -> bool:
        """Whether a text or a distribution differs from the target's by more than rounding."""
        is_exact = all(distribution.is_exact for distribution in self.distributions)
        return not is_exact or any(check.verdict == "different" for check in self.comparisons)
