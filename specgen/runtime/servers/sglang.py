"""Speaks to SGLang, which reports figures if a request asks for them.

Source of the fields: the text of SGLang's pull request 33518. They were tested with handmade payloads only: no server
of this engine was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from specgen.runtime.servers.engine import CONTRADICTION, Getter, usage
from specgen.runtime.servers.values import Acceptance, EventFigures, Json, ServerFacts, count, counts, part, word

MAX_ROUNDS = 2**20
"""More rounds than any answer has: the counts are untrusted."""


class Sglang:
    """A server started with `sglang.launch_server`."""

    chat_path = "/v1/chat/completions"
    sampling_fields: Mapping[str, str] = {
        name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    }
    has_ignore_eos = True
    draft_field = ""
    metrics_prefix = ""

    def facts(self, model: Json, get: Getter) -> ServerFacts | None:
        if word(model, "owned_by") != "sglang":
            return None
        info = get("/server_info") or get("/get_server_info") or {}
        algorithm = word(info, "speculative_algorithm")
        topk = count(info, "speculative_eagle_topk")
        is_tree = topk is not None and topk > 1
        return ServerFacts(
            "SGLang",
            word(info, "version"),
            word(model, "id"),
            word(model, "root"),
            count(model, "max_model_len"),
            does_speculate=bool(algorithm) if info else None,
            exposes=("figures of drafts in each answer",),
            advice=("drafts are trees: use --speculative-eagle-topk 1 for a meaningful TAR",) if is_tree else (),
        )

    def request_fields(self) -> Json:
        return {"stream_options": {"include_usage": True}, "return_spec_tokens_details": True}

    def read(self, event: Json) -> EventFigures:
        figures, details = usage(event), part(event, "sglext", "spec_tokens_details")
        if not details:
            return figures
        num_drafted = count(details, "spec_num_proposed_drafts")
        num_accepted = count(details, "spec_num_correct_drafts")
        num_rounds = count(details, "spec_verify_ct")
        histogram = counts(details, "spec_correct_drafts_histogram") or ()
        if num_drafted is None or num_accepted is None:
            return replace(figures, problem="SGLang's counts of draft tokens are incomplete")
        # Its width is the same in every round: a round without a rejection accepts all of them.
        width = num_drafted // num_rounds if num_rounds and num_drafted % num_rounds == 0 else None
        full = histogram[width] if width is not None and width < len(histogram) else 0
        is_known = bool(histogram) and num_rounds is not None and width is not None
        num_rejected = num_rounds - full if is_known and num_rounds is not None else None
        steps: tuple[tuple[int, int], ...] = ()
        if is_known and width is not None and sum(histogram) == num_rounds and sum(histogram) <= MAX_ROUNDS:
            # Not in their order, which no figure depends on.
            steps = tuple((width, accepted) for accepted, n in enumerate(histogram) for _ in range(n))
        found = Acceptance(num_drafted, num_accepted, num_rounds, num_rejected, histogram, steps)
        if not found.is_consistent:
            return replace(figures, problem=CONTRADICTION.format("SGLang"))
        return replace(figures, acceptance=found)
