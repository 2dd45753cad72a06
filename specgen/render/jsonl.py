"""Makes JSON documents of events and reports: one per line (ndjson), or only the `result` document (json).

Field names follow vLLM's per-request figures, so that scripts written for those can read these. Within a schema version
fields are only added. Seconds end in `_s` or `seconds`, sizes in `_bytes`; rates are fractions; null means unknown.

    start → prefill → step* → text? → result        warning and error at any point

The kept tokens of all steps, followed by `text`, concatenate to the text of `result`. A server gives `piece`s of text
instead of `prefill` and `step`.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from specgen.core import __version__
from specgen.core.errors import SpecgenError
from specgen.core.events import FinalText, Notice, Prefill, RoundText, ServedText, TextEvent
from specgen.core.metrics import Counts, Detail
from specgen.core.results import ModelInfo, RunInfo, RunReport
from specgen.render.sanitize import UNSAFE
from specgen.render.served import server_document, sources_document
from specgen.render.timings import rounded_seconds, timings_document

Document = dict[str, Any]

SCHEMA_VERSION = 1
# JSON escapes C0 itself; the others would reach a terminal unchanged. After `json.dumps` they occur in strings only.
_ESCAPES = {code: json.dumps(chr(code))[1:-1] for code in UNSAFE if code >= 0x20}


def dumps(document: Document) -> str:
    """Returns one line of strict JSON, without control or bidi characters; NaN and infinity become null."""
    text = json.dumps(_finite(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_ESCAPES)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def start_document(info: RunInfo, time: datetime) -> Document:
    """Returns the first event. `time` is the time of the start, with a time zone."""
    return {
        "type": "start",
        **_header(info),
        "time": time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }


def event_document(event: TextEvent) -> Document | None:
    """Returns an event of the generation; None for an empty final text."""
    match event:
        case Prefill():
            return {
                "type": "prefill",
                "prompt_tokens": event.num_prompt_tokens,
                "reused_tokens": event.num_reused_tokens,
                "seconds": rounded_seconds(event.seconds),
            }
        case RoundText(round_, pieces, texts):
            return {
                "type": "step",
                "index": round_.index,
                "drafted": len(round_.draft_ids),
                "accepted": round_.num_accepted,
                "source": round_.source,
                "seconds": rounded_seconds(round_.seconds),
                "draft_seconds": rounded_seconds(round_.draft_seconds),
                "verify_seconds": rounded_seconds(round_.verify_seconds),
                "tokens": [{"id": piece.id, "text": piece.text, "state": piece.state.value} for piece in pieces],
                "nodes": None
                if round_.tree is None
                else [
                    {"id": token, "parent": parent, "text": text}
                    for token, parent, text in zip(round_.tree.ids, round_.tree.parents, texts, strict=True)
                ],
            }
        case ServedText():
            state = None if event.state is None else event.state.value
            return {"type": "piece", "text": event.text, "state": state, "tokens": event.num_tokens}
        case Notice():
            return {"type": "warning", "code": event.code, "message": event.message}
        case FinalText():
            return {"type": "text", "text": event.text} if event.text else None


def result_document(report: RunReport) -> Document:
    """Returns the last event of a run without an error, which is also the one document of `--json`."""
    counts, baseline = report.counts, report.baseline
    return {
        "type": "result",
        **_header(report.info),
        "text": report.text,
        "token_ids": None if report.token_ids is None else list(report.token_ids),
        "finish_reason": report.finish_reason,
        "stop_text": report.stop_text,
        "usage": {
            "prompt_tokens": counts.num_prompt_tokens,
            "completion_tokens": counts.num_emitted,
            "total_tokens": counts.num_prompt_tokens + counts.num_emitted,
            "cached_tokens": counts.num_reused_tokens,
        },
        "timings": timings_document(report),
        "stats": stats_document(counts),
        "baseline": None
        if baseline is None
        else {
            "method": baseline.method,
            "tokens": baseline.num_tokens,
            "seconds_per_token": baseline.tpot_seconds,
            "compared": baseline.compared,
            "first_difference": baseline.first_difference,
        },
        "speedup": report.speedup,
        "predicted_speedup": None if report.forecast is None else report.forecast.speedup,
        "predicted_by_draft_tokens": {} if report.forecast is None else dict(report.forecast.by_length),
        "notices": list(report.notices),
        **sources_document(report),
    }


def error_document(error: SpecgenError) -> Document:
    """Returns the last event of a run that an error ended; `exit_code` is that of the process."""
    return {
        "type": "error",
        "schema_version": SCHEMA_VERSION,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }


def _header(info: RunInfo) -> Document:
    sampling = info.sampling
    return {
        "schema_version": SCHEMA_VERSION,
        "specgen_version": __version__,
        "target": model_document(info.target),
        "draft": model_document(info.draft) if info.draft is not None else None,
        "speculative": {
            "method": info.drafter.replace("model", "draft_model").replace("lookup", "prompt_lookup"),
            "num_spec_tokens": None if info.server else info.num_draft_tokens,
            "schedule": None if info.server else info.schedule,
            "num_tree_nodes": None if info.server else info.num_tree_nodes,
            "verification": info.verification,
        },
        "sampling": {
            "do_sample": not sampling.is_greedy,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "seed": sampling.seed,
            "source": info.sampling_source,
        },
        "max_new_tokens": info.max_new_tokens,
        **_guarantee(info),
        **server_document(info),
    }


def _guarantee(info: RunInfo) -> Document:
    """`batch_invariance` is null in plain float32, which needs no check."""
    check, new, old = info.batch_invariance, None, None
    is_lossless = None if info.guarantee == "unchecked" else info.guarantee != "none"
    if check is not None:
        figures = {
            "max_difference": check.max_difference,
            "int8_threshold": check.threshold,
            "reason": check.reason or None,
        }
        new = {"is_invariant": check.is_invariant, "is_exact": check.is_exact, **figures}
        old = {"is_independent": check.is_invariant, **figures}
    return {
        "guarantee": {"class": info.guarantee, "is_lossless": is_lossless, "batch_invariance": new},
        # Schema version 1 keeps the names of 0.1.0 next to the new ones.
        "promise": {"class": old_guarantee(info), "is_lossless": is_lossless, "row_check": old},
    }


def old_guarantee(info: RunInfo) -> str:
    """Returns the guarantee under its name in 0.1.0: `same_law` for `same_distribution`."""
    return "same_law" if info.guarantee == "same_distribution" else info.guarantee


def model_document(model: ModelInfo) -> Document:
    """Returns a model as it really runs."""
    return {
        "id": model.name,
        "revision": model.revision,
        "quant": model.quant,
        "dtype": model.dtype,
        "device": model.device,
        "num_parameters": model.num_parameters,
        "weights_bytes": model.num_bytes,
        "remark": model.remark,
    }


def stats_document(counts: Counts) -> Document:
    """Returns the figures of drafting and acceptance."""
    accepted_length = counts.mean_accepted_length if counts.num_drafted else None
    detail = counts.detail
    return {
        "num_spec_steps": counts.num_rounds if detail >= Detail.ROUNDS else None,
        "num_draft_tokens": counts.num_drafted if detail >= Detail.TOTALS else None,
        "num_accepted_draft_tokens": counts.num_accepted if detail >= Detail.TOTALS else None,
        "num_rejected_draft_tokens": counts.num_rejected if detail >= Detail.ALL else None,
        "num_discarded_draft_tokens": counts.num_discarded if detail >= Detail.ALL else None,
        "num_lookup_draft_tokens": None if counts.is_served else counts.num_lookup_drafted,
        "num_accepted_lookup_draft_tokens": None if counts.is_served else counts.num_lookup_accepted,
        "draft_acceptance_rate": counts.acceptance_rate,
        "conditional_acceptance_rate": counts.alpha,
        "mean_acceptance_length": None if accepted_length is None else 1 + accepted_length,
        "block_efficiency": counts.block_efficiency,
        "num_tree_steps": None if counts.is_served else counts.num_tree_rounds,
        "num_tree_nodes": None if counts.is_served else counts.num_tree_nodes,
        "draft_share": counts.draft_share,
        "acceptance_histogram": list(counts.accepted_histogram),
        "per_position_acceptance_rate": [
            accepted / drafted
            for accepted, drafted in zip(counts.accepted_by_position, counts.drafted_by_position, strict=True)
        ],
        "conditional_per_position_acceptance_rate": counts.acceptance_by_position,
    }
