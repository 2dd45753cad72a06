"""The options of `specgen verify`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.models import BackendOptions, LoadOptions, ModelOptions

HELP = "Check that drafts do not change the output of your model pair."
EPILOG = """Checks the sampler exactly on toy models, whether logits depend on later tokens in the same pass, and \
greedy answers with the draft against those of the target alone.

--against transformers also loads the target with transformers' own code, which takes the memory of a second copy, and \
compares logits and greedy answers.

Exit code 6: a greedy text differs from the target's own by more than rounding explains.

Examples:

specgen verify

specgen verify -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct --dtype float32 --quant none"""


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of `specgen verify`."""

    prompts: Annotated[
        tuple[str, ...],
        Option(("-p", "--prompt"), "Prompt to compare answers to. Repeatable. Default: four.", heading=g.INPUT),
    ] = ()
    chat_template_variables: g.ChatTemplateVariables = None
    models: ModelOptions = field(default_factory=ModelOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    backend: BackendOptions = field(default_factory=BackendOptions)
    against: Annotated[
        Literal["none", "transformers"],
        Option(("--against",), "Compare the target alone with transformers' own code, too.", heading=g.INPUT),
    ] = "none"
    draft_tokens: g.DraftTokens = "5"
    tree: g.Tree = None
    max_new_tokens: Annotated[
        int, Option(("-n", "--max-new-tokens"), "Tokens compared for each prompt.", heading=g.SAMPLING)
    ] = 64
    json: g.Json = False
    color: g.Color = "auto"
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
