"""Speaks to any server with OpenAI's chat completions: text and usage, no figures of drafts."""

from __future__ import annotations

from collections.abc import Mapping

from specgen.runtime.servers.engine import OPENAI_SAMPLING, Getter, usage
from specgen.runtime.servers.values import EventFigures, Json, ServerFacts, count, word


class PlainServer:
    """An OpenAI-compatible server of an engine that is not known: Ollama, mlx_lm, TGI, a proxy."""

    chat_path = "/v1/chat/completions"
    sampling_fields: Mapping[str, str] = OPENAI_SAMPLING
    has_ignore_eos = False
    draft_field = ""
    metrics_prefix = ""

    def facts(self, model: Json, get: Getter) -> ServerFacts:  # noqa: ARG002
        advice = ("this server reports nothing about its drafts; vLLM, SGLang, llama-server and LM Studio do",)
        window = count(model, "max_model_len")
        return ServerFacts("OpenAI-compatible server", "", word(model, "id"), window=window, advice=advice)

    def request_fields(self) -> Json:
        return {"stream_options": {"include_usage": True}}

    def read(self, event: Json) -> EventFigures:
        return usage(event)
