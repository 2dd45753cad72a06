"""What is promised of a run's text in, words and JSON for it out."""

from __future__ import annotations

from typing import Any

from specgen.core.results import RunInfo

NOT_LOSSLESS = "NOT LOSSLESS"
_WORDS = {
    "exact": "the target's own tokens",
    "near_tie": "the target's own tokens up to near ties",
    "same_law": "the target's law",
    "none": NOT_LOSSLESS,
}


def format_promise(info: RunInfo) -> str:
    """What holds of the text, and why if nothing does."""
    words = _WORDS[info.promise]
    return f"{words}: {info.batch_invariance.reason}" if info.promise == "none" and info.batch_invariance else words


def promise_document(info: RunInfo) -> dict[str, Any]:
    """`class` is `exact`, `near_tie`, `same_law` or `none`; `row_check` is null in plain float32, which needs none."""
    check = info.batch_invariance
    return {
        "class": info.promise,
        "is_lossless": info.promise != "none",
        "row_check": None
        if check is None
        else {
            "is_independent": check.is_invariant,
            "max_difference": check.max_difference,
            "int8_threshold": check.threshold,
            "reason": check.reason or None,
        },
    }
