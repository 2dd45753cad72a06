"""The options commands share, each written once: names, help, unit and default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from specgen.core.settings import BaselineMethod, DtypeName, Quantization

MODELS = "Models"
SPECULATION = "Speculation"
SAMPLING = "Sampling"
INPUT = "Input"
OUTPUT = "Output"

Format = Literal["auto", "text", "json", "ndjson"]

DEFAULT_DRAFT = "auto"
DEFAULT_DRAFT_TOKENS = "auto"

Target = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        "--model",
        "-m",
        metavar="MODEL",
        envvar="SPECGEN_TARGET",
        help="Model whose text you want: hub id, folder, or .gguf file. Without it: SmolLM2-135M-Instruct, from PyPI.",
        rich_help_panel=MODELS,
        show_default=False,
    ),
]
DraftName = Annotated[
    str,
    typer.Option(
        "--draft",
        "-d",
        metavar="MODEL[+lookup]|auto|lookup|none",
        envvar="SPECGEN_DRAFT",
        help="What drafts: a small model, repetition in the text, both, nothing; auto: the target's own, else lookup.",
        rich_help_panel=MODELS,
    ),
]
Quant = Annotated[
    Quantization,
    typer.Option(
        "--quant",
        "-Q",
        envvar="SPECGEN_QUANT",
        help="Weights of the target. auto: nf4 on CUDA and on CPUs with AVX512-BF16, else none; never for a GGUF.",
        rich_help_panel=MODELS,
    ),
]
DraftQuant = Annotated[
    Quantization, typer.Option("--draft-quant", help="Weights of the draft, likewise.", rich_help_panel=MODELS)
]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        "--dtype",
        help="Compute type. auto: bfloat16 where fast, else float16 (CPU: weights only).",
        rich_help_panel=MODELS,
    ),
]
_DEVICES = "auto|cpu|cuda|cuda:N|mps"
Device = Annotated[
    str,
    typer.Option("--device", metavar=_DEVICES, envvar="SPECGEN_DEVICE", help="Of the target.", rich_help_panel=MODELS),
]
DraftDevice = Annotated[
    str | None,
    typer.Option("--draft-device", metavar=_DEVICES, help="Default: the target's.", rich_help_panel=MODELS),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit of a hub target.", rich_help_panel=MODELS),
]
DraftRevision = Annotated[
    str | None, typer.Option("--draft-revision", help="Likewise of a hub draft.", rich_help_panel=MODELS)
]
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar="HF_HUB_OFFLINE", help="Use only files on this machine.", rich_help_panel=MODELS),
]
DraftTokens = Annotated[
    str,
    typer.Option(
        "--draft-tokens",
        "--num-draft-tokens",
        "-k",
        metavar="N|auto",
        envvar="SPECGEN_DRAFT_TOKENS",
        help="Length of a draft, in tokens, 0 to 64; auto: as long as a further token is worth its measured cost.",
        rich_help_panel=SPECULATION,
    ),
]
LookupFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--lookup-file", help="Text the answer may repeat, for lookup. Can be repeated.", rich_help_panel=SPECULATION
    ),
]
Baseline = Annotated[
    BaselineMethod,
    typer.Option(
        "--baseline",
        envvar="SPECGEN_BASELINE",
        help="How the target alone is timed for the speedup: 8 steps, the full answer again, or not.",
        rich_help_panel=SPECULATION,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="End with an error if the draft fails, instead of going on without it.",
        rich_help_panel=SPECULATION,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "--max-tokens",
        "-n",
        min=1,
        help="Longest answer, in tokens; default 256, or what the model's window leaves.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
_MODELS_OWN = "default: the model's own setting"
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "--temp",
        help=f"0 is greedy; {_MODELS_OWN}, else 0.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        help=f"Sample from the k likeliest tokens; {_MODELS_OWN}.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help=f"Sample from the likeliest tokens that make up this share; {_MODELS_OWN}.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        help=f"Drop tokens less likely than this share of the likeliest; {_MODELS_OWN}.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        help=f"Above 1 makes repetition less likely; {_MODELS_OWN}.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        envvar="SPECGEN_SEED",
        help="Repeat a sampled text: the same seed gives the same text.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
SameText = Annotated[
    bool | None,
    typer.Option(
        "--same-text/--no-same-text",
        help="One seed, one text, with any draft or none; accepts a little less. Default: if a seed is given.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer before this text. Can be repeated.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="Go on past the model's end token.", rich_help_panel=SAMPLING)
]
System = Annotated[
    str | None,
    typer.Option(
        "--system", "-s", metavar="TEXT", envvar="SPECGEN_SYSTEM", help="System message.", rich_help_panel=INPUT
    ),
]
SystemFile = Annotated[
    Path | None, typer.Option("--system-file", help="System message from a file.", rich_help_panel=INPUT)
]
ChatTemplate = Annotated[
    str,
    typer.Option(
        "--chat-template",
        metavar="auto|none|FILE",
        help="The model's own template, none for raw completion, or a Jinja file.",
        rich_help_panel=INPUT,
    ),
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help='Variables for the template, as in {"enable_thinking": false}.',
        rich_help_panel=INPUT,
    ),
]
View = Annotated[
    Literal["auto", "inline", "live", "text", "steps", "off"],
    typer.Option(
        "--view",
        envvar="SPECGEN_VIEW",
        help="How the answer is shown. auto: inline on a terminal, else off.",
        rich_help_panel=OUTPUT,
    ),
]
Color = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(
        "--color",
        envvar="SPECGEN_COLOR",
        help="Colours; NO_COLOR and FORCE_COLOR are honoured.",
        rich_help_panel=OUTPUT,
    ),
]
Sanitize = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(
        "--sanitize", help="Make control characters visible. auto: wherever somebody looks.", rich_help_panel=OUTPUT
    ),
]
Stats = Annotated[
    bool, typer.Option("--stats/--no-stats", help="Figures at the end, on stderr.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the answer and errors.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="-v: loading steps; -vv: library messages and tracebacks.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
