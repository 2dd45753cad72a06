"""The options of `specgen chat`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.fields import GivenNames
from specgen.cli.options.models import AUTO, BackendOptions, LoadOptions, ModelOptions
from specgen.cli.options.server import ConnectionOptions, ServerOptions
from specgen.core.settings import DEFAULT_REPLY_TOKENS

HELP = "Talk with a model. The caches are kept between turns, and each reply shows what the draft saves."
EPILOG = """Examples:

specgen chat

specgen chat -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct --system "Be brief."

specgen chat --resume last

specgen chat --server http://localhost:8000 --baseline-server http://localhost:8001"""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What is kept of a chat, and which saved one it continues."""

    HEADING = "Session"

    resume: Annotated[
        str | None,
        Option(
            ("--resume",), "Continue a saved session, with its models unless others are given.", value="last|NAME|FILE"
        ),
    ] = None
    save: Annotated[bool, Option(("--save",), "Save the session after every turn.", off_names=("--no-save",))] = True
    history: Annotated[
        bool,
        Option(
            ("--history",),
            "Keep the lines you type, for the Up key. A line that starts with a space is never kept.",
            off_names=("--no-history",),
            env="SPECGEN_HISTORY",
        ),
    ] = True


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What the model reads in addition to the turns."""

    HEADING = g.INPUT

    system: g.SystemOptions = field(default_factory=g.SystemOptions)
    chat_template: Annotated[
        str, Option(("--chat-template",), "auto: the model's own chat template; or a Jinja file.", value="auto|FILE")
    ] = "auto"
    chat_template_variables: g.ChatTemplateVariables = None


@dataclass(frozen=True, slots=True)
class DraftingOptions:
    """How tokens are drafted, and whether replies show a speedup."""

    draft_tokens: g.DraftTokens = AUTO
    tree: g.Tree = None
    lookup_files: g.LookupFiles = ()
    calibrate: Annotated[
        bool,
        Option(
            ("--calibrate",),
            "Time the target alone once, on 8 tokens, so that replies show a speedup.",
            off_names=("--no-calibrate",),
            heading=g.SPECULATION,
        ),
    ] = True
    strict: g.Strict = False


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """Where a reply ends."""

    HEADING = g.SAMPLING

    max_new_tokens: Annotated[
        int,
        Option(
            g.MAX_NEW_TOKENS_NAMES, "Most tokens of a reply; fewer if less is left of the context window.", minimum=1
        ),
    ] = DEFAULT_REPLY_TOKENS
    stops: g.Stops = ()


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How replies are shown."""

    HEADING = g.OUTPUT

    view: Annotated[g.ViewChoice, Option(("--view",), "How replies are shown. auto: live.", env="SPECGEN_VIEW")] = (
        "auto"
    )
    color: g.Color = "auto"
    sanitize: g.Sanitize = "auto"
    show_special_tokens: g.ShowSpecialTokens = False
    stats: g.Stats = True


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """The options of `specgen chat`.

    `given` names the options that the user gave; a saved session decides about the others.
    """

    session: SessionOptions = field(default_factory=SessionOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    connection: ConnectionOptions = field(default_factory=ConnectionOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    models: ModelOptions = field(default_factory=ModelOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    drafting: DraftingOptions = field(default_factory=DraftingOptions)
    reply: ReplyOptions = field(default_factory=ReplyOptions)
    sampling: g.SamplingOptions = field(default_factory=g.SamplingOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
    given: GivenNames = frozenset()
