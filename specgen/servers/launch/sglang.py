"""Makes the command line of SGLang. From its documentation; no SGLang was at hand to check it with."""

from __future__ import annotations

from specgen.servers.launch.values import (
    LaunchCommand,
    LaunchRequest,
    Speculation,
    refuse_gguf,
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
    remarks = []
    if place.world_size > 1:
        words += ["--tp", str(place.world_size)]
    if place.num_nodes > 1:
        words += ["--nnodes", str(place.num_nodes), "--node-rank", "0", "--dist-init-addr", f"HEAD:{INIT_PORT}"]
        remarks.append("HEAD is the address of the first node; the others run the same line with --node-rank 1, 2, ...")
    if speculation is not None:
        refuse_other_vocabulary("SGLang", speculation)
        words += _speculative(speculation)
        if speculation.draft is None:
            remarks.append("SGLang's NGRAM needs CUDA")
        elif speculation.has_lookup:
            remarks.append("SGLang can't combine a draft model with lookup: this uses the model only")
    for role, quant in (("target", request.quant), ("draft", request.draft_quant)):
        if quant in ("nf4", "fp4", "int8"):
            remarks.append(
                f"the {role} ran in {quant}; here it runs in the checkpoint's own format: start it from an AWQ, GPTQ "
                "or FP8 checkpoint of the same model"
            )
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
