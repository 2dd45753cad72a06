"""The options of `specgen doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.fields import GivenNames
from specgen.cli.options.models import DRAFT_NAMES, DRAFT_VALUE, MODELS, TARGET_NAMES, BackendOptions, LoadOptions
from specgen.cli.options.server import SERVER_URL, ConnectionOptions
from specgen.core.draft_name import NO_DRAFT, DraftName

HELP = "Report what this machine and its libraries can do, and whether a pair of models fits it and each other."
EPILOG = """Without --measure no weights are read: sizes and compatibility come from configs, headers and tokenizers. \
A hub model that is not on this machine yet is downloaded.

Examples:

specgen doctor

specgen doctor -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct --measure"""


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """The options of `specgen doctor`."""

    target: Annotated[
        str | None,
        Option(
            TARGET_NAMES,
            'Model to examine: hub id, folder or .gguf file; "" is the built-in one.',
            value="MODEL",
            heading=MODELS,
        ),
    ] = None
    server: Annotated[str, SERVER_URL] = ""
    connection: ConnectionOptions = field(default_factory=ConnectionOptions)
    draft: Annotated[DraftName, Option(DRAFT_NAMES, "Draft to examine with it.", value=DRAFT_VALUE, heading=MODELS)] = (
        NO_DRAFT
    )
    load: LoadOptions = field(default_factory=LoadOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    context_tokens: Annotated[
        int | None,
        Option(("--context",), "Tokens to plan memory for. Default: the context window, at most 4096.", minimum=1),
    ] = None
    measure: Annotated[bool, Option(("--measure",), "Load the models and time passes over 1 to 13 tokens.")] = False
    alphas: Annotated[
        tuple[float, ...],
        Option(
            ("--alpha",),
            "With --measure: find the best draft length at this acceptance rate. Repeatable. Default: 0.5 to 0.9.",
            value="SHARE",
            minimum=0,
            maximum=1,
        ),
    ] = ()
    json: g.Json = False
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
    given: GivenNames = frozenset()
