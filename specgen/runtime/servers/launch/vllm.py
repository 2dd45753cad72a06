"""Makes the command line of vLLM. Read in the source of 0.32.0, and checked with its argument parser."""

from __future__ import annotations

import json
from typing import Any

from specgen.runtime.servers.launch.values import (
    MTP_DRAFT,
    LaunchCommand,
    LaunchRequest,
    Speculation,
    draft_remarks,
    placement_remarks,
    quant_remarks,
    refuse_gguf,
    refuse_other_vocabulary,
)

CHECKED = "checked with vLLM 0.32.0"
LOOKUP_MIN, LOOKUP_MAX = 2, 5
"""Lengths of the repeated text that `ngram` searches."""
_BITSANDBYTES = ". vLLM 0.32 has no bitsandbytes; on one GPU there is the plugin vllm-bnb-plugin"
QUANT_REMARKS = {
    "nf4": _BITSANDBYTES,
    "fp4": _BITSANDBYTES,
    "int8": ", or add --quantization int8_per_channel_weight_only, whose numbers are not the same",
}


def vllm_command(request: LaunchRequest) -> LaunchCommand:
    """Returns the command line.

    Tensor parallel over all GPUs of all nodes: pipeline parallel does not work together with speculation.

    Raises:
        SettingsError: vLLM can't run the models.
    """
    refuse_gguf("vLLM", request)
    place, speculation = request.placement, request.speculation
    words = ["vllm", "serve", request.target, *place.port_words]
    remarks = ["anybody who reaches its port can use it: add --host 127.0.0.1, or --api-key in a network you trust"]
    if place.world_size > 1:
        words += ["--tensor-parallel-size", str(place.world_size)]
    if place.num_nodes > 1:
        words += ["--nnodes", str(place.num_nodes), "--node-rank", "0", "--master-addr", "HEAD"]
        remarks += placement_remarks(place, others_add="--headless")
    if speculation is not None:
        refuse_other_vocabulary("vLLM", speculation)
        words += ["--speculative-config", json.dumps(_config(speculation), separators=(",", ":"))]
        # Without speculation the server refuses it.
        words += ["--per-request-spec-decode-metrics", "detailed"]
    # Its own decoding time; a baseline needs it, too, because both servers are timed by the same clock.
    words.append("--enable-per-request-metrics")
    remarks += draft_remarks("vLLM", speculation)
    remarks += quant_remarks(request, "AWQ, GPTQ, FP8 or compressed-tensors", QUANT_REMARKS)
    return LaunchCommand(tuple(words), tuple(remarks))


def _config(speculation: Speculation) -> dict[str, Any]:
    number = {"num_speculative_tokens": speculation.num_draft_tokens}
    if speculation.draft == MTP_DRAFT:
        return {"method": "mtp", **number}
    if speculation.draft is not None:
        return {"method": "draft_model", "model": speculation.draft, **number}
    return {"method": "ngram", **number, "prompt_lookup_min": LOOKUP_MIN, "prompt_lookup_max": LOOKUP_MAX}
