"""Makes the command line of llama.cpp's llama-server. Checked with builds b10434 and b11549."""

from __future__ import annotations

from pathlib import PurePath

from specgen.core.errors import SettingsError
from specgen.runtime.servers.launch.values import (
    LaunchCommand,
    LaunchRequest,
    ServerPlacement,
    Speculation,
    is_gguf_name,
    refuse_mtp,
)

CHECKED = "checked with llama.cpp b10434 and b11549"
LOOKUP_SIZE = 3
"""Length of the repeated text that `ngram-simple` searches; its own default of 12 tokens seldom repeats."""
RPC_PORT = 50052


def llama_server_command(request: LaunchRequest) -> LaunchCommand:
    """Returns the command line.

    Raises:
        SettingsError: llama-server can't run the models.
    """
    place, speculation = request.placement, request.speculation
    words = ["llama-server", *_model(request.target, "--model", "--hf-repo"), *place.port_words]
    # One slot: more of them share the window, and speculation gains most for one request at a time.
    words += ["--metrics", "--parallel", "1"]
    placement, remarks = _placement(place)
    words += placement
    if speculation is not None:
        refuse_mtp("llama-server", speculation)
        words += _speculative(speculation)
        if speculation.vocabulary != "same":
            remarks.append("llama-server translates a draft of another vocabulary by way of text; this was not checked")
        if speculation.is_adaptive:
            remarks.append("--spec-draft-p-min 0.6 or so ends a draft early where the draft model is unsure")
    return LaunchCommand(tuple(words), tuple(remarks))


def _model(name: str, file_option: str, hub_option: str) -> list[str]:
    if is_gguf_name(name):
        return [file_option, name]
    # By convention, repositories of GGUF files say so in their names; a quantization may follow a colon.
    if name.count("/") == 1 and PurePath(name.partition(":")[0]).name.lower().endswith("gguf"):
        return [hub_option, name]
    raise SettingsError(
        f"llama-server reads GGUF files only, and {name} is not one", "give a .gguf file, or a hub id that ends in GGUF"
    )


def _placement(place: ServerPlacement) -> tuple[list[str], list[str]]:
    words, remarks = [], []
    if place.num_nodes > 1:
        words += ["--rpc", ",".join(f"NODE{number}:{RPC_PORT}" for number in range(1, place.num_nodes))]
        remarks.append(
            f"NODE1, NODE2, ... are the other machines; each runs ggml-rpc-server --host ADDRESS --port {RPC_PORT}. "
            "RPC asks for no password: use it in a private network only"
        )
    if place.num_gpus > 1:
        words += ["--split-mode", "layer"]
        remarks.append("split by layers, one GPU works at a time: this gives room, not speed")
    return words, remarks


def _speculative(speculation: Speculation) -> list[str]:
    kinds, words, number = [], [], str(speculation.num_draft_tokens)
    if speculation.draft is not None:
        kinds.append("draft-simple")
        words += _model(speculation.draft, "--spec-draft-model", "--spec-draft-hf")
        words += ["--spec-draft-n-max", number]
    if speculation.has_lookup:
        kinds.append("ngram-simple")
        words += ["--spec-ngram-simple-size-n", str(LOOKUP_SIZE), "--spec-ngram-simple-size-m", number]
    return ["--spec-type", ",".join(kinds), *words]
