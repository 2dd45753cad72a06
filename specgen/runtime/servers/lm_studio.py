"""Speaks to LM Studio by its own v0 interface, which reports how many draft tokens were accepted.

Source of the fields: LM Studio's documentation of `/api/v0/chat/completions`. They were tested with handmade payloads
only: no server of this engine was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from specgen.runtime.servers.engine import CONTRADICTION, OPENAI_SAMPLING, Getter, usage
from specgen.runtime.servers.values import Acceptance, EventFigures, Json, ServerFacts, count, part, word


class LmStudio:
    """LM Studio's local server."""

    chat_path = "/api/v0/chat/completions"
    sampling_fields: Mapping[str, str] = {**OPENAI_SAMPLING, "top_k": "top_k"}
    has_ignore_eos = False
    draft_field = "draft_model"
    metrics_prefix = ""

    def facts(self, model: Json, get: Getter) -> ServerFacts | None:
        data = (get("/api/v0/models") or {}).get("data")
        entries = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
        own = next((entry for entry in entries if word(entry, "id") == word(model, "id")), None)
        if own is None or "max_context_length" not in own:
            return None
        window = count(own, "loaded_context_length") or count(own, "max_context_length")
        return ServerFacts(
            "LM Studio", "", word(own, "id"), window=window, exposes=("figures of drafts in each answer",)
        )

    def request_fields(self) -> Json:
        return {"stream_options": {"include_usage": True}}

    def read(self, event: Json) -> EventFigures:
        figures, stats = usage(event), part(event, "stats")
        num_drafted, num_accepted = (
            count(stats, "total_draft_tokens_count"),
            count(stats, "accepted_draft_tokens_count"),
        )
        if num_drafted is None and num_accepted is None:
            return figures
        found = None if num_drafted is None or num_accepted is None else Acceptance(num_drafted, num_accepted)
        if found is None or not found.is_consistent:
            return replace(figures, problem=CONTRADICTION.format("LM Studio"))
        return replace(figures, acceptance=found)
