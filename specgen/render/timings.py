"""Makes the times of a run for JSON documents; see `specgen.render.jsonl`."""

from __future__ import annotations

from typing import Any

from specgen.core.metrics import Counts
from specgen.core.results import RunReport


def timings_document(report: RunReport) -> dict[str, Any]:
    """Returns the times and the speed of an answer."""
    counts = report.counts
    return {
        "load_s": rounded_seconds(report.info.load_seconds),
        "prefill_s": None if counts.is_served else rounded_seconds(counts.prefill_seconds),
        "decode_s": rounded_seconds(counts.decode_seconds),
        "draft_s": None if counts.is_served else rounded_seconds(counts.draft_seconds),
        "verify_s": None if counts.is_served else rounded_seconds(counts.verify_seconds),
        "ttft_s": None if counts.ttft_seconds is None else rounded_seconds(counts.ttft_seconds),
        "total_s": rounded_seconds(report.total_seconds),
        "tokens_per_s": counts.tokens_per_second,
        "peak_memory_bytes": report.peak_memory_bytes,
        **warmup_document(counts),
    }


def warmup_document(counts: Counts) -> dict[str, Any]:
    """Returns the part of `decode_s` and of the tokens that speeds leave out, if there is one."""
    if not counts.num_warmup_rounds:
        return {}
    return {"warmup_s": rounded_seconds(counts.warmup_seconds), "warmup_tokens": counts.num_warmup_tokens}


def rounded_seconds(seconds: float) -> float:
    """Returns the digits that were measured: a sum of floats has more."""
    return round(seconds, 9)
