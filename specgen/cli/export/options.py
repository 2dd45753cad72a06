"""The options of `specgen export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.models import DRAFT_NAMES, MODELS, TARGET_NAMES
from specgen.core.draft_name import DraftName
from specgen.runtime.servers.launch import EngineName

HELP = "Print the command that starts a server with the same target, draft and draft length."
EPILOG = """The command goes to stdout, remarks to stderr. What an engine can't do is refused with exit code 2.

Examples:

specgen export vllm --from runs.json --gpus 8

specgen export llama-server -t target.gguf -d draft.gguf -k 3

specgen export vllm -t Qwen/Qwen2.5-32B-Instruct --baseline --port 8001"""


@dataclass(frozen=True, slots=True)
class PairOptions:
    """The target and what drafts for it."""

    HEADING = MODELS

    results: Annotated[
        Path | None,
        Option(
            ("--from",),
            "Results of specgen bench as JSON: use what it recommends. -t then gives the place of a local target.",
        ),
    ] = None
    target: Annotated[
        str | None, Option(TARGET_NAMES, "Model to serve: hub id, folder or .gguf file.", value="MODEL")
    ] = None
    draft: Annotated[
        DraftName | None,
        Option(DRAFT_NAMES, "Drafter: a model, lookup, both or none.", value="MODEL[+lookup]|lookup|none"),
    ] = None
    draft_tokens: Annotated[
        int | None, Option(g.DRAFT_TOKENS_NAMES, "Draft length in tokens.", heading=g.SPECULATION)
    ] = None
    baseline: Annotated[
        bool,
        Option(("--baseline",), "Start it without drafts, to measure the speedup against.", heading=g.SPECULATION),
    ] = False


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """Where the server runs."""

    HEADING = "Server"

    gpus: Annotated[int, Option(("--gpus",), "GPUs of each node.", minimum=1)] = 1
    nodes: Annotated[int, Option(("--nodes",), "Machines that run the model together.", minimum=1)] = 1
    port: Annotated[
        int | None, Option(("--port",), "Port of the server. Default: the engine's own.", minimum=1, maximum=65535)
    ] = None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of `specgen export`."""

    engine: Annotated[EngineName, Option(help="The engine to start.", value="vllm|sglang|llama-server")]
    pair: PairOptions = field(default_factory=PairOptions)
    server: LaunchOptions = field(default_factory=LaunchOptions)
    json: g.Json = False
    color: g.Color = "auto"
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
