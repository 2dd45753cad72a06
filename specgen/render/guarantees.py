"""Formats the guarantee of a run's text for people and for JSON."""

from __future__ import annotations

from specgen.core.results import RunInfo
from specgen.render.json_text import Document

NOT_LOSSLESS = "NOT LOSSLESS"
_WORDS = {
    "exact": "the target's own tokens",
    "near_tie": "the target's own tokens up to near ties",
    "same_distribution": "the target's distribution",
    "none": NOT_LOSSLESS,
}


def format_guarantee(info: RunInfo) -> str:
    """Returns the guarantee in words; for a text without one, also the reason."""
    words = _WORDS[info.guarantee]
    return f"{words}: {info.batch_invariance.reason}" if info.guarantee == "none" and info.batch_invariance else words


def guarantee_documents(info: RunInfo) -> Document:
    """Returns the fields `guarantee` and `promise` of a document, to be merged into it.

    `class` is `exact`, `near_tie`, `same_distribution` or `none`. `batch_invariance` is null in plain float32, which
    needs no check.
    """
    check = info.batch_invariance
    is_lossless = info.guarantee != "none"
    figures = (
        None
        if check is None
        else {
            "max_difference": check.max_difference,
            "int8_threshold": check.threshold,
            "reason": check.reason or None,
        }
    )
    return {
        "guarantee": {
            "class": info.guarantee,
            "is_lossless": is_lossless,
            "batch_invariance": None if check is None else {"is_invariant": check.is_invariant, **(figures or {})},
        },
        # Schema version 1 keeps the names of 0.1.0 next to the new ones.
        "promise": {
            "class": old_guarantee(info),
            "is_lossless": is_lossless,
            "row_check": None if check is None else {"is_independent": check.is_invariant, **(figures or {})},
        },
    }


def old_guarantee(info: RunInfo) -> str:
    """Returns the guarantee under its name in 0.1.0: `same_law` for `same_distribution`."""
    return "same_law" if info.guarantee == "same_distribution" else info.guarantee
