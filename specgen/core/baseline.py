"""Compares a run with the target's own speed, measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.core.metrics import Counts


@dataclass(frozen=True, slots=True)
class Baseline:
    """The target's own speed in the same run: same weights, prompt and loop, without a draft.

    Args:
        method: `calibrate`: a few steps repeated after the answer, and its own rounds without a draft; `full`: the
            whole answer again; `server`: by a server without drafts; `request`: by the same server without a draft.
        num_tokens: Timed tokens.
        tpot_seconds: Decoding seconds per token.
        first_difference: For `full` and greedy: index of the first token that differs from the speculative answer,
            None if none does or nothing was compared.
        compared: Whether the two answers were compared.
    """

    method: str
    num_tokens: int
    tpot_seconds: float
    first_difference: int | None = None
    compared: bool = False


def speedup(counts: Counts, baseline: Baseline | None) -> float | None:
    """Returns baseline TPOT / speculative TPOT: wall clock of decoding, without prefill and warm-up on both sides."""
    tpot = counts.tpot_seconds
    return baseline.tpot_seconds / tpot if baseline is not None and tpot else None
