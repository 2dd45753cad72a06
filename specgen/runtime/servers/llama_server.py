"""Speaks to llama.cpp's `llama-server`, whose counters step once a round, so that accepted tokens can be marked live.

Source of the fields: a run of build b11549. An event holds one token. `draft_n` and `draft_n_accepted` grow with the
first token of a round and stay until the next round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from specgen.runtime.servers.engine import CONTRADICTION, OPENAI_SAMPLING, Getter, usage
from specgen.runtime.servers.values import Acceptance, EventFigures, Json, ServerFacts, count, part, seconds, word


class LlamaServer:
    """A server started with `llama-server`."""

    chat_path = "/v1/chat/completions"
    sampling_fields: Mapping[str, str] = {
        **OPENAI_SAMPLING,
        "top_k": "top_k",
        "min_p": "min_p",
        "repetition_penalty": "repeat_penalty",
    }
    has_ignore_eos = True
    draft_field = ""
    metrics_prefix = "llamacpp:"

    def facts(self, model: Json, get: Getter) -> ServerFacts | None:
        if word(model, "owned_by") != "llamacpp":
            return None
        properties = get("/props") or {}
        window = count(part(properties, "default_generation_settings"), "n_ctx")
        has_metrics = properties.get("endpoint_metrics") is True
        return ServerFacts(
            "llama-server",
            word(properties, "build_info"),
            word(model, "id"),
            word(properties, "model_path"),
            window or count(part(model, "meta"), "n_ctx_train"),
            exposes=("accepted tokens as they come", *(("counters at /metrics",) if has_metrics else ())),
            advice=() if has_metrics else ("start llama-server with --metrics for the number of rounds",),
        )

    def request_fields(self) -> Json:
        return {"stream_options": {"include_usage": True}, "timings_per_token": True}

    def read(self, event: Json) -> EventFigures:
        figures, timings = usage(event), part(event, "timings")
        if not timings:
            return figures
        # Without drafts the two counters are absent.
        num_drafted, num_accepted = count(timings, "draft_n") or 0, count(timings, "draft_n_accepted") or 0
        num_tokens = count(timings, "predicted_n")
        figures = replace(figures, decode_seconds=seconds(timings, "predicted_ms"))
        # They are ahead of the tokens: all accepted ones of a round are counted with its first token.
        if num_accepted > num_drafted:
            return replace(figures, problem=CONTRADICTION.format("llama-server"))
        if "usage" in event:
            return replace(figures, acceptance=Acceptance(num_drafted, num_accepted))
        return replace(figures, num_tokens=num_tokens, num_drafted=num_drafted, num_accepted=num_accepted)
