"""The options of `specgen batch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.fields import GivenNames
from specgen.cli.options.models import AUTO, BackendOptions, LoadOptions, ModelOptions
from specgen.cli.options.server import SERVER, SERVER_URL, ConnectionOptions

HELP = "Answer a file of prompts, and continue where an earlier run stopped."
EPILOG = """The file has prompts as bench reads them, or lines of OpenAI's Batch API; the output has lines of \
the latter, with figures in response.body.specgen. Requests whose id is in the output are skipped. On this machine \
they are answered one after the other; with --server several at a time, each within --timeout, and \
lines are in the order of completion.

Exit code 11: some requests failed; their lines say why, and the others are answered.

Examples:

specgen batch prompts.jsonl -o answers.jsonl

specgen batch prompts.jsonl -o answers.jsonl --server http://localhost:8000 --concurrency 16"""


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How prompts become token ids, and where answers end."""

    chat_template: g.ChatTemplate = "auto"
    chat_template_variables: g.ChatTemplateVariables = None
    max_new_tokens: Annotated[
        int | None,
        Option(
            g.MAX_NEW_TOKENS_NAMES,
            "Most tokens of an answer whose request does not say. Default: 256, or what is left of the context window.",
            heading=g.SAMPLING,
            minimum=1,
        ),
    ] = None
    stops: g.Stops = ()


@dataclass(frozen=True, slots=True)
class ServedOptions:
    """The server that answers, instead of models on this machine."""

    HEADING = SERVER

    server: Annotated[str, SERVER_URL] = ""
    concurrency: Annotated[
        int, Option(("--concurrency",), "Requests that the server gets at a time.", minimum=1, maximum=256)
    ] = 8
    connection: ConnectionOptions = field(default_factory=ConnectionOptions)


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """The options of `specgen batch`."""

    file: Annotated[Path, Option(help="The prompts.", value="FILE")]
    output: Annotated[Path, Option(("-o", "--output"), "File for the answers.", heading=g.OUTPUT)]
    models: ModelOptions = field(default_factory=ModelOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    draft_tokens: g.DraftTokens = AUTO
    tree: g.Tree = None
    lookup_files: g.LookupFiles = ()
    text: TextOptions = field(default_factory=TextOptions)
    sampling: g.SamplingOptions = field(default_factory=g.SamplingOptions)
    served: ServedOptions = field(default_factory=ServedOptions)
    retry_failed: Annotated[
        bool, Option(("--retry-failed",), "Answer requests again that an earlier run could not.", heading=g.INPUT)
    ] = False
    json: g.Json = False
    color: g.Color = "auto"
    stats: g.Stats = True
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
    given: GivenNames = frozenset()
