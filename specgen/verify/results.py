"""What `specgen verify` found, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specgen.core.results import BatchInvarianceCheck, LogitGap, RunInfo


@dataclass(frozen=True, slots=True)
class DistributionError:
    """How far the law of the loop is from the target's, over all outcomes on a table.

    Args:
        processors: Which were on.
        num_outcomes: Outcomes walked.
        error: Largest difference of a text's probability.
    """

    processors: str
    num_outcomes: int
    error: float

    @property
    def is_exact(self) -> bool:
        """Up to the rounding of float64."""
        return self.error < 1e-12


@dataclass(frozen=True, slots=True)
class TextCheck:
    """A greedy answer with a draft beside the target's own.

    Args:
        prompt: In words.
        num_tokens: Tokens compared.
        num_drafted: Draft tokens among them, kept or not.
        num_accepted: Those that were kept.
        position: Index of the first token that differs; None: none does.
        gap: Between the two tokens there; None where none differs.
    """

    prompt: str
    num_tokens: int
    num_drafted: int
    num_accepted: int
    position: int | None = None
    gap: LogitGap | None = None

    @property
    def verdict(self) -> Literal["same", "near-tie", "different"]:
        """What the difference to the target's own text amounts to."""
        if self.gap is None:
            return "same"
        return "near-tie" if self.gap.is_near_tie else "different"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `specgen verify` found.

    Args:
        info: What ran.
        distributions: The sampler on toy models.
        batch_invariance: Whether later tokens of a pass change earlier logits.
        texts: Greedy answers.
    """

    info: RunInfo
    distributions: tuple[DistributionError, ...]
    batch_invariance: BatchInvarianceCheck
    texts: tuple[TextCheck, ...]

    @property
    def has_real_difference(self) -> bool:
        """Whether a text or a law is not the target's."""
        return any(text.verdict == "different" for text in self.texts) or not all(
            distribution.is_exact for distribution in self.distributions
        )
