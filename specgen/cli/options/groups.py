"""Options that several commands share: prompts, drafting, sampling and output."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from specgen.cli.app_spec import Option
from specgen.core.settings import SamplingSettings

SPECULATION = "Speculation"
SAMPLING = "Sampling"
INPUT = "Input"
OUTPUT = "Output"


SYSTEM_VARIABLE = "SPECGEN_SYSTEM"
DRAFT_TOKENS_NAMES = ("-k", "--draft-tokens", "--num-draft-tokens")
MAX_NEW_TOKENS_NAMES = ("-n", "--max-new-tokens", "--max-tokens")
TEMPERATURE_NAMES = ("--temperature", "--temp")
_MODELS_OWN = "default: the model's own setting"

# Options of more than one command that are in no group.
DraftTokens = Annotated[
    str,
    Option(
        DRAFT_TOKENS_NAMES,
        "Draft length in tokens, 0 to 64. auto: draft another token while its expected gain exceeds its measured cost.",
        value="N|auto",
        heading=SPECULATION,
        env="SPECGEN_DRAFT_TOKENS",
    ),
]
Tree = Annotated[
    str | None,
    Option(
        ("--tree",),
        "Draft several tokens for one position: trees of this many tokens, 1 to 16, with paths of up to -k. auto: as "
        "many as are worth their measured cost. Default: auto for greedy text with -k auto on a CPU, else off.",
        value="N|auto|off",
        heading=SPECULATION,
        env="SPECGEN_TREE",
    ),
]
LookupFiles = Annotated[
    tuple[Path, ...],
    Option(("--lookup-file",), "Text that lookup searches in addition to the prompt. Repeatable.", heading=SPECULATION),
]
Strict = Annotated[
    bool,
    Option(
        ("--strict",), "Exit with an error if the draft fails, instead of continuing without it.", heading=SPECULATION
    ),
]
Stops = Annotated[
    tuple[str, ...], Option(("--stop",), "End the answer before this text. Repeatable.", heading=SAMPLING)
]
ShowSpecialTokens = Annotated[
    bool, Option(("--show-special-tokens",), "Show special tokens in the answer, as tool calls.", heading=OUTPUT)
]
ChatTemplate = Annotated[
    str,
    Option(
        ("--chat-template",),
        "auto: the model's own chat template; none: complete the raw prompt; or a Jinja file.",
        value="auto|none|FILE",
        heading=INPUT,
    ),
]
ChatTemplateVariables = Annotated[
    str | None,
    Option(
        ("--chat-template-kwargs",),
        'Variables for the chat template, as in {"enable_thinking": false}.',
        value="JSON",
        heading=INPUT,
    ),
]
Format = Literal["auto", "text", "json", "ndjson"]
ViewChoice = Literal["auto", "inline", "live", "text", "steps", "off"]
Color = Annotated[
    Literal["auto", "always", "never"],
    Option(("--color",), "Use colours. auto follows NO_COLOR and FORCE_COLOR.", heading=OUTPUT, env="SPECGEN_COLOR"),
]
Sanitize = Annotated[
    Literal["auto", "always", "never"],
    Option(("--sanitize",), "Make control characters visible. auto: on a terminal.", heading=OUTPUT),
]
Stats = Annotated[
    bool, Option(("--stats",), "Print figures at the end, on stderr.", off_names=("--no-stats",), heading=OUTPUT)
]
Json = Annotated[bool, Option(("--json",), "Print one JSON document.", heading=OUTPUT)]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are sampled; None means the model's own setting."""

    HEADING = SAMPLING

    temperature: Annotated[float | None, Option(TEMPERATURE_NAMES, f"0 is greedy; {_MODELS_OWN}, else 0.")] = None
    top_k: Annotated[int | None, Option(("--top-k",), f"Sample from the k most likely tokens; {_MODELS_OWN}.")] = None
    top_p: Annotated[
        float | None,
        Option(("--top-p",), f"Sample from the most likely tokens that together have this probability; {_MODELS_OWN}."),
    ] = None
    min_p: Annotated[
        float | None,
        Option(
            ("--min-p",),
            f"Drop tokens whose probability is below this fraction of the most likely one's; {_MODELS_OWN}.",
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None, Option(("--repetition-penalty",), f"Above 1 makes repetition less likely; {_MODELS_OWN}.")
    ] = None
    seed: Annotated[
        int | None, Option(("--seed",), "Seed: the same seed repeats a sampled text.", env="SPECGEN_SEED")
    ] = None
    same_text: Annotated[
        bool | None,
        Option(
            ("--same-text",),
            "The same seed gives the same text with any draft or none; slightly fewer drafted tokens are accepted. "
            "Default: on if a seed is given.",
            off_names=("--no-same-text",),
        ),
    ] = None

    def resolve(self, defaults: SamplingSettings | None) -> tuple[SamplingSettings, str]:
        """Returns the effective settings, and where they come from: `options`, `model` or `default`.

        Raises:
            SettingsError: A value is out of range.
        """
        base = defaults or SamplingSettings()
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        values = {name: given.get(name, getattr(base, name)) for name in names}
        source = "options" if given else "model" if defaults is not None else "default"
        seed = self.seed if self.seed is not None else random.SystemRandom().randrange(2**31)
        same_text = self.seed is not None if self.same_text is None else self.same_text
        return SamplingSettings(**values, seed=seed, same_text=same_text), source


@dataclass(frozen=True, slots=True)
class SystemOptions:
    """The system message."""

    HEADING = INPUT

    system: Annotated[str | None, Option(("-s", "--system"), "System message.", env=SYSTEM_VARIABLE)] = None
    system_file: Annotated[Path | None, Option(("--system-file",), "File with the system message.")] = None


@dataclass(frozen=True, slots=True)
class VerbosityOptions:
    """How much is printed on stderr."""

    HEADING = OUTPUT

    quiet: Annotated[bool, Option(("-q", "--quiet"), "Print only the result and errors.")] = False
    verbose: Annotated[
        int,
        Option(
            ("-v", "--verbose"), "-v: stages of loading; -vv: messages of the libraries, and tracebacks.", counts=True
        ),
    ] = 0
