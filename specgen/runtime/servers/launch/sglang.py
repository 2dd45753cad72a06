"""Makes the command line of SGLang. From its documentation; no SGLang was at hand to check it with."""

from __future__ import annotations

from specgen.runtime.servers.launch.values import (
    LaunchCommand,
    LaunchRequest,
    Speculation,
    draft_remarks,
    placement_remarks,
    quant_remarks,
    refuse_gguf,
    refuse_mtp,
    refuse_other_vocabulary,
)

CHECKED = "written from the documentation of SGLang 0.5, not checked with it"
INIT_PORT = 50000
"""Port on the first node by which the others find it."""


def sglang_command(request: LaunchRequest) -> LaunchCommand:
    """Returns the command line.

    Raises:
        SettingsError: SGLang can't run the models.
    """
    refuse_gguf("SGLang", request)
    place, speculation = request.placement, request.speculation
    words = ["python", "-m", "sglang.launch_server", "--model-path", request.target, *place.port_words]
    remarks = placement_remarks(place)
    if place.world_size > 1:
        words += ["--tp", str(place.world_size)]
    if place.num_nodes > 1:
        words += ["--nnodes", str(place.num_nodes), "--node-rank", "0", "--dist-init-addr", f"HEAD:{INIT_PORT}"]
    if speculation is not None:
        refuse_other_vocabulary("SGLang", speculation)
        refuse_mtp("SGLang", speculation)
        words += _speculative(speculation)
        if speculation.draft is None:
            remarks.append("SGLang's NGRAM needs CUDA")
    remarks += [*draft_remarks("SGLang", speculation), *quant_remarks(request, "AWQ, GPTQ or FP8")]
    return LaunchCommand(tuple(words), tuple(remarks))


def _speculative(speculation: Speculation) -> list[str]:
    number = speculation.num_draft_tokens
    if speculation.draft is None:
        return ["--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", str(number)]
    return [
        *("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", speculation.draft),
        # One branch: with a tree of drafts, "drafted" would count its nodes. The last number includes the target's.
        *("--speculative-num-steps", str(number), "--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(number + 1)),
    ]
