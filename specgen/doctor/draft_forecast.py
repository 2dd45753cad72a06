"""Defines what is predicted for a draft. The field names are keys of its JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from specgen.core.settings import DraftVocab, ModelSettings

Source = Literal["given", "cache", "lookup", "draft head", "hub"]
Basis = Literal["measured", "learned", "estimated"]
"""Measured just now, learned from earlier runs on this machine, or estimated from sizes and tokens."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A value, and the range that it probably lies in."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Prediction:
        """Returns the interval in another unit."""
        return Prediction(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class DraftForecast:
    """What a draft would do for a target.

    Args:
        draft: The value of `--draft`.
        source: Where it was found.
        vocabulary: Describes how its vocabulary relates to the target's.
        draft_vocab: How it is used; None for lookup, or if its tokenizer is not on this machine.
        num_bytes: Of its weights in memory; 0 for lookup.
        fits: Whether target and draft fit into memory; None if unknown.
        relative_cost: Cost of a draft token as a share of the target's.
        cost_basis: Where the cost comes from.
        alpha: Acceptance of a drafted token.
        alpha_basis: Where it comes from.
        num_draft_tokens: Best draft length; 0 if none pays.
        speedup: Over the target alone.
        tokens_per_second: Of decoding; None if the target's own speed is unknown.
        command: Measures it.
    """

    draft: str
    source: Source
    vocabulary: str
    draft_vocab: DraftVocab | None
    num_bytes: int
    fits: bool | None
    relative_cost: float
    cost_basis: Basis
    alpha: float
    alpha_basis: Basis
    num_draft_tokens: int
    speedup: Prediction
    tokens_per_second: Prediction | None = None
    command: str = ""

    def bench_command(self, target: ModelSettings, like: ModelSettings) -> str:
        """Returns the command that measures the draft with the same formats; without a name, for the built-in target.

        Args:
            target: How the target is loaded.
            like: How drafts are loaded.
        """
        options = {
            "-Q": target.quant,
            "--draft-quant": like.quant,
            "--dtype": target.dtype,
            "--device": target.device,
            "--draft-device": "auto" if like.device == target.device else like.device,
        }
        loading = f"-t {shlex.quote(target.name)} " if target.name else ""
        loading += "".join(f"{name} {value} " for name, value in options.items() if value != "auto")
        is_translated = self.draft_vocab in ("shared", "text")
        vocab = f" --draft-vocab {self.draft_vocab}" if is_translated else ""
        lengths = f"{self.num_draft_tokens},auto" if self.num_draft_tokens else "auto"
        return f"specgen bench {loading}-d {shlex.quote(self.draft)}{vocab} -k {lengths}"


def ranked(drafts: Sequence[DraftForecast]) -> tuple[DraftForecast, ...]:
    """Sorts drafts: those that fit first, then by speedup; of equal ones, the smallest first."""
    return tuple(sorted(drafts, key=lambda one: (one.fits is False, -one.speedup.value, one.num_bytes)))


@dataclass(frozen=True, slots=True)
class UnusableDraft:
    """A candidate that can't be used, and why."""

    draft: str
    reason: str


@dataclass(frozen=True, slots=True)
class DraftRanking:
    """The drafts for a target, the most promising first.

    Args:
        target: Its name.
        target_seconds: Seconds of a pass over one token; None if unknown.
        target_basis: Where they come from.
        notices: What the user should know about the search, one line each.
    """

    target: str
    target_seconds: float | None
    target_basis: Basis
    drafts: tuple[DraftForecast, ...]
    unusable: tuple[UnusableDraft, ...] = ()
    notices: tuple[str, ...] = ()
