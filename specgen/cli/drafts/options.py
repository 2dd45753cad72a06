"""The options of `specgen drafts`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.models import DRAFT_NAMES, MODELS, BackendOptions, LoadOptions

HELP = "Rank the drafts for a target: which fit, what they cost, and the speed they promise."
EPILOG = """Candidates are lookup, the draft head that comes with specgen, the target's own MTP head, distilled draft \
heads in the working folder or next to the target, models given with -d, those in the hub's cache, and on \
the hub smaller models of the target's family. Nothing is downloaded, and without --measure no weights are read: \
figures are called estimated, learned (from earlier runs) or measured.

Examples:

specgen drafts Qwen/Qwen2.5-1.5B-Instruct

specgen drafts Qwen/Qwen2.5-1.5B-Instruct -d ~/models -d small.gguf --measure"""


@dataclass(frozen=True, slots=True)
class DraftsOptions:
    """The options of `specgen drafts`."""

    target: Annotated[
        str,
        Option(help='Model to find drafts for: hub id, folder or .gguf file; "" is the built-in one.', value="TARGET"),
    ]
    drafts: Annotated[
        tuple[str, ...],
        Option(
            DRAFT_NAMES, "Further candidate: a model, or a folder of models. Repeatable.", value="MODEL", heading=MODELS
        ),
    ] = ()
    load: LoadOptions = field(default_factory=LoadOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    measure: Annotated[
        bool, Option(("--measure",), "Load the three most promising drafts and measure them with a short run.")
    ] = False
    json: g.Json = False
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
