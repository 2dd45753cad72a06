"""Speaks to vLLM, from 0.29 on with the figures of each request.

Source of the fields: vLLM 0.32.0, `vllm/entrypoints/generate/base/protocol.py` and `vllm/v1/spec_decode/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from specgen.runtime.servers.engine import CONTRADICTION, Getter, usage
from specgen.runtime.servers.values import (
    Acceptance,
    EventFigures,
    Json,
    ServerFacts,
    count,
    counts,
    part,
    seconds,
    word,
)

FLAGS = "--per-request-spec-decode-metrics detailed --enable-per-request-metrics"


class Vllm:
    """A server started with `vllm serve`."""

    chat_path = "/v1/chat/completions"
    sampling_fields: Mapping[str, str] = {
        name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    }
    has_ignore_eos = True
    draft_field = ""
    metrics_prefix = "vllm:"

    def facts(self, model: Json, get: Getter) -> ServerFacts | None:
        if word(model, "owned_by") != "vllm":
            return None
        version = word(get("/version"), "version")
        return ServerFacts(
            "vLLM",
            version,
            word(model, "id"),
            word(model, "root"),
            count(model, "max_model_len"),
            exposes=("token ids", "logprobs", "counters at /metrics"),
            advice=(f"start vLLM 0.29 or newer with {FLAGS} for the figures of each answer",),
        )

    def request_fields(self) -> Json:
        return {"stream_options": {"include_usage": True}, "return_token_ids": True}

    def read(self, event: Json) -> EventFigures:
        figures, metrics = usage(event), part(event, "metrics")
        figures = replace(figures, decode_seconds=seconds(metrics, "generation_time_ms"))
        speculation = part(metrics, "speculative_decoding")
        if not speculation:
            return figures
        acceptance = _acceptance(speculation)
        if acceptance is None or not acceptance.is_consistent:
            return replace(figures, problem=CONTRADICTION.format("vLLM"))
        return replace(figures, acceptance=acceptance)


def _acceptance(figures: Json) -> Acceptance | None:
    """Returns the counts; with `detailed`, those of every round. None if the sums are missing."""
    num_drafted, num_accepted = count(figures, "num_draft_tokens"), count(figures, "num_accepted_draft_tokens")
    if num_drafted is None or num_accepted is None:
        return None
    accepted, drafted = counts(figures, "per_step_accepted"), counts(figures, "per_step_drafted")
    steps: tuple[tuple[int, int], ...] = ()
    if accepted and drafted and len(accepted) == len(drafted):
        steps = tuple(zip(drafted, accepted, strict=True))
    return Acceptance(
        num_drafted,
        num_accepted,
        count(figures, "num_spec_steps"),
        sum(a < d for d, a in steps) if steps else None,
        counts(figures, "acceptance_histogram") or (),
        steps,
    )
