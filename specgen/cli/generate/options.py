"""The options of `specgen generate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.fields import GivenNames
from specgen.cli.options.models import AUTO, BackendOptions, LoadOptions, ModelOptions
from specgen.cli.options.server import ConnectionOptions, ServerOptions
from specgen.core.settings import BaselineMethod

HELP = "Answer one prompt with speculative decoding: the draft guesses tokens, the target checks them."
EPILOG = """Examples:

specgen generate "Why is the sky blue?"

specgen generate -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct -k 4 "Write a haiku."

git diff | specgen generate "Write a commit message for this change." > message.txt

specgen generate --json "List three colours." | jq -r .text"""


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """The prompt, and how it becomes token ids."""

    HEADING = g.INPUT

    prompt_argument: Annotated[
        str | None, Option(help="The prompt; - reads stdin. Piped text goes before the prompt.", value="[PROMPT]")
    ] = None
    prompt: Annotated[str | None, Option(("-p", "--prompt"), "The prompt, as an option.")] = None
    files: Annotated[
        tuple[Path, ...], Option(("-f", "--file"), "Text that goes before the prompt; - reads stdin. Repeatable.")
    ] = ()
    reads_stdin: Annotated[
        bool | None,
        Option(("--stdin",), "Read stdin or not. Default: if it is a pipe or a file.", off_names=("--no-stdin",)),
    ] = None
    system: g.SystemOptions = field(default_factory=g.SystemOptions)
    chat_template: g.ChatTemplate = "auto"
    chat_template_variables: g.ChatTemplateVariables = None


@dataclass(frozen=True, slots=True)
class DraftingOptions:
    """How tokens are drafted, and what the speedup is measured against."""

    draft_tokens: g.DraftTokens = AUTO
    tree: g.Tree = None
    lookup_files: g.LookupFiles = ()
    baseline: Annotated[
        BaselineMethod,
        Option(
            ("--baseline",),
            "Time the target alone for the speedup. calibrate: 8 tokens; full: the whole answer; off: not at all.",
            heading=g.SPECULATION,
            env="SPECGEN_BASELINE",
        ),
    ] = "calibrate"
    strict: g.Strict = False


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Where the answer ends."""

    HEADING = g.SAMPLING

    max_new_tokens: Annotated[
        int | None,
        Option(
            g.MAX_NEW_TOKENS_NAMES,
            "Most tokens of the answer. Default: 256, or what is left of the context window.",
            minimum=1,
        ),
    ] = None
    stops: g.Stops = ()
    ignore_eos: Annotated[bool, Option(("--ignore-eos",), "Continue after the model's end token.")] = False


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where the answer goes, and in which form."""

    HEADING = g.OUTPUT

    view: Annotated[
        g.ViewChoice,
        Option(("--view",), "How the answer is shown. auto: inline on a terminal, else off.", env="SPECGEN_VIEW"),
    ] = "auto"
    color: g.Color = "auto"
    sanitize: g.Sanitize = "auto"
    format: Annotated[
        g.Format, Option(("--format",), "text, json (one document) or ndjson (a line for each event).")
    ] = "auto"
    json: Annotated[bool, Option(("--json",), "The same as --format json.")] = False
    file: Annotated[Path | None, Option(("-o", "--output"), "Write the plain answer to this file as well.")] = None
    show_special_tokens: g.ShowSpecialTokens = False
    stats: g.Stats = True


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The options of `specgen generate`."""

    prompt: PromptOptions = field(default_factory=PromptOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    connection: ConnectionOptions = field(default_factory=ConnectionOptions)
    models: ModelOptions = field(default_factory=ModelOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    drafting: DraftingOptions = field(default_factory=DraftingOptions)
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    sampling: g.SamplingOptions = field(default_factory=g.SamplingOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
    given: GivenNames = frozenset()
