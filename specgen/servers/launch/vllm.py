"""Makes the command line of vLLM. Read in the source of 0.32.0, and checked with its argument parser."""

from __future__ import annotations

import json
from typing import Any

from specgen.servers.launch.values import (
    LaunchCommand,
    LaunchRequest,
    Speculation,
    refuse_gguf,
    refuse_other_vocabulary,
)

CHECKED = "checked with vLLM 0.32.0"
LOOKUP_MIN, LOOKUP_MAX = 2, 5
"""Lengths of the repeated text that `ngram` searches."""
_OTHER_WEIGHTS = "start it from an AWQ, GPTQ, FP8 or compressed-tensors checkpoint of the same model"
_BITSANDBYTES = (
    f"vLLM 0.32 has no bitsandbytes: {_OTHER_WEIGHTS}, or on one GPU with the plugin vllm-bnb-plugin; as printed it "
    "runs the checkpoint's own format"
)
QUANT_REMARKS = {
    "nf4": _BITSANDBYTES,
    "fp4": _BITSANDBYTES,
    "int8": f"specgen ran the target in int8: {_OTHER_WEIGHTS}, or add --quantization int8_per_channel_weight_only, "
    "whose numbers are not the same",
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
        remarks.append(
            "HEAD is the address of the first node; the others run the same line with --node-rank 1, 2, ... "
            "and --headless"
        )
    if speculation is not None:
        refuse_other_vocabulary("vLLM", speculation)
        words += ["--speculative-config", json.dumps(_config(speculation), separators=(",", ":"))]
        # Without speculation the server refuses the first of the two.
        words += ["--per-request-spec-decode-metrics", "detailed", "--enable-per-request-metrics"]
        if speculation.draft is not None and speculation.has_lookup:
            remarks.append("vLLM can't combine a draft model with lookup: this uses the model only")
        if request.draft_quant in QUANT_REMARKS:
            remarks.append(f"the draft ran in {request.draft_quant}; here it runs in the checkpoint's own format")
    if request.quant in QUANT_REMARKS:
        remarks.append(QUANT_REMARKS[request.quant])
    return LaunchCommand(tuple(words), tuple(remarks))


def _config(speculation: Speculation) -> dict[str, Any]:
    number = {"num_speculative_tokens": speculation.num_draft_tokens}
    if speculation.draft is not None:
        return {"method": "draft_model", "model": speculation.draft, **number}
    return {"method": "ngram", **number, "prompt_lookup_min": LOOKUP_MIN, "prompt_lookup_max": LOOKUP_MAX}
