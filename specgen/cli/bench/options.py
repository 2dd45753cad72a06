"""The options of `specgen bench`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.fields import GivenNames
from specgen.cli.options.models import BACKEND, DRAFT_NAMES, MODELS, TARGET_NAMES, LlamaCppOptions, LoadOptions
from specgen.cli.options.server import BASELINE_SERVER, SERVER, SERVER_URL, ConnectionOptions
from specgen.core.draft_name import DraftName
from specgen.core.settings import SamplingSettings

HELP = "Measure which draft and draft length make a target fastest on this machine, or that none does."
EPILOG = """TAR: accepted / drafted tokens. α: accepted / tested tokens, the figure to compare drafts by.

speedup: seconds per token of the target alone / with the draft, decoding only; ± half of its 95 % interval. \
predicted: the speedup that the measured costs of passes give for the same rounds.

text: whether greedy answers were the target's own: same, near-tie@I (rounding decided token I), DIFFERENT@I.

Examples:

specgen bench --quick

specgen bench -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct -d lookup -k 1-4,auto --plot k.svg

specgen bench -t TARGET -d DRAFT:none -d DRAFT:nf4 -k 4 --check --fail-under-speedup 1.2 --format json

specgen bench -t TARGET.gguf --backend both

specgen bench --server http://a:8000 --server http://b:8000 --baseline-server http://c:8000 --concurrency 1,8"""

MEASURING = "Measuring"
BenchFormat = Literal["auto", "table", "json", "ndjson", "csv", "md"]


@dataclass(frozen=True, slots=True)
class ComparedOptions:
    """The drafts and draft lengths to compare."""

    drafts: Annotated[
        tuple[DraftName, ...],
        Option(
            DRAFT_NAMES,
            "Draft to measure, with its weight format if given. Repeatable. Default: auto.",
            value="MODEL[:QUANT][+lookup]|auto|lookup",
            heading=MODELS,
        ),
    ] = ()
    draft_tokens: Annotated[
        str | None,
        Option(
            g.DRAFT_TOKENS_NAMES,
            "Draft lengths, as in 1,2,4,8 or 1-8 or 2-8+2 or auto. Default: 2,4,auto.",
            value="LIST",
            heading=g.SPECULATION,
        ),
    ] = None
    trees: Annotated[
        str | None,
        Option(
            ("--tree",),
            "Sizes of drafts that branch, as in off,4,8 or off,auto; each is measured at each draft length. Default: "
            "off, and auto where that is generate's default; with --quick only the latter.",
            value="LIST",
            heading=g.SPECULATION,
        ),
    ] = None
    lookup_files: g.LookupFiles = ()
    peers: Annotated[
        tuple[str, ...],
        Option(
            ("--peer",),
            "Measure another program in the same table: llama-cpp-python, or transformers with the target's weights. "
            "Repeatable.",
            value="llama-cpp[=FILE.gguf]|transformers",
            heading=MODELS,
        ),
    ] = ()


@dataclass(frozen=True, slots=True)
class BenchBackendOptions:
    """The backends that run the models."""

    backend: Annotated[
        Literal["auto", "torch", "transformers", "llama.cpp", "both"],
        Option(
            ("--backend",),
            "What runs the models, as in generate. both: compare a GGUF target on llama.cpp and torch.",
            heading=BACKEND,
            env="SPECGEN_BACKEND",
        ),
    ] = "auto"
    llama_cpp: LlamaCppOptions = field(default_factory=LlamaCppOptions)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What is run, and how often."""

    HEADING = MEASURING

    max_new_tokens: Annotated[
        int | None, Option(g.MAX_NEW_TOKENS_NAMES, "Tokens of each run. Default: 128.", minimum=2)
    ] = None
    repeats: Annotated[
        int | None,
        Option(
            ("-r", "--repeats"),
            "Runs of every prompt in every configuration. Default: 5. One repeat gives no interval.",
            minimum=1,
        ),
    ] = None
    warmup: Annotated[
        int, Option(("-w", "--warmup"), "Runs of each configuration that are not counted.", minimum=0)
    ] = 1
    prompts: Annotated[
        Path | None,
        Option(
            ("--prompts",),
            "JSON lines with prompt, messages or turns, and category; or one prompt per line. Default: the bundled "
            "ones.",
        ),
    ] = None
    num_prompts: Annotated[
        int | None,
        Option(("--num-prompts",), "Use only this many prompts, from as many categories as possible.", minimum=1),
    ] = None
    temperature: Annotated[float, Option(g.TEMPERATURE_NAMES, "0 is greedy.", heading=g.SAMPLING)] = 0.0
    top_k: Annotated[
        int, Option(("--top-k",), "Sample from the k most likely tokens; 0: from all.", heading=g.SAMPLING)
    ] = 0
    top_p: Annotated[
        float,
        Option(
            ("--top-p",),
            "Sample from the most likely tokens that together have this probability.",
            heading=g.SAMPLING,
        ),
    ] = 1.0
    min_p: Annotated[
        float,
        Option(
            ("--min-p",),
            "Drop tokens whose probability is below this fraction of the most likely one's.",
            heading=g.SAMPLING,
        ),
    ] = 0.0
    seed: Annotated[int, Option(("--seed",), "Seed of every run.", heading=g.SAMPLING)] = 0
    same_text: Annotated[
        bool,
        Option(
            ("--same-text",),
            "Draw the same text with any draft or none, as generate does with a seed; slightly fewer drafted tokens "
            "are accepted.",
            heading=g.SAMPLING,
        ),
    ] = False
    ignore_eos: Annotated[
        bool,
        Option(
            ("--ignore-eos",),
            "Generate equally long answers, or stop at the model's end token.",
            off_names=("--stop-at-eos",),
        ),
    ] = True
    chat_template: g.ChatTemplate = "auto"
    chat_template_variables: g.ChatTemplateVariables = None
    quick: Annotated[
        bool,
        Option(
            ("--quick",),
            "Give a first result within a minute: -k 4,auto -n 24 -r 3 --num-prompts 3, fewer runs if time runs out.",
        ),
    ] = False

    def sampling(self) -> SamplingSettings:
        """Returns how tokens are chosen; raises `SettingsError` for a value out of range."""
        names = ("temperature", "top_k", "top_p", "min_p", "seed", "same_text")
        return SamplingSettings(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """What must hold for the exit code 0."""

    HEADING = MEASURING

    check: Annotated[
        bool, Option(("--check",), "Exit with 6 if a greedy text differs from the target's own by more than rounding.")
    ] = False
    fail_under_speedup: Annotated[
        float | None,
        Option(("--fail-under-speedup",), "Exit with 9 if the speedup of the fastest configuration is below X."),
    ] = None
    fail_under_tar: Annotated[
        float | None,
        Option(("--fail-under-tar",), "Exit with 9 if the TAR of the fastest configuration, a fraction, is below X."),
    ] = None


@dataclass(frozen=True, slots=True)
class ResultFileOptions:
    """Files for the results. The suffix of a plot decides its format."""

    HEADING = g.OUTPUT

    export_json: Annotated[Path | None, Option(("--export-json",), "All runs as JSON.")] = None
    export_csv: Annotated[Path | None, Option(("--export-csv",), "A row for each run.")] = None
    export_markdown: Annotated[Path | None, Option(("--export-md", "--export-markdown"), "The table as Markdown.")] = (
        None
    )
    plot: Annotated[
        Path | None,
        Option(("--plot",), "Speedup and acceptance as .svg or .png; needs: pip install 'specgen-cli[plot]'"),
    ] = None


@dataclass(frozen=True, slots=True)
class BenchTableOptions:
    """What the table shows."""

    HEADING = g.OUTPUT

    by_category: Annotated[bool, Option(("--by-category",), "Show speedups by category, too.")] = False
    chart: Annotated[
        bool, Option(("--chart",), "Show bars under the table on a terminal.", off_names=("--no-chart",))
    ] = True


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of `specgen bench`."""

    target: Annotated[
        str,
        Option(
            TARGET_NAMES,
            "Model to measure: hub id, folder or .gguf file. Default: SmolLM2-135M-Instruct, from PyPI.",
            value="MODEL",
            heading=MODELS,
            env="SPECGEN_TARGET",
        ),
    ] = ""
    servers: Annotated[
        tuple[str, ...], replace(SERVER_URL, help=f"{SERVER_URL.help} Needs --baseline-server. Repeatable.")
    ] = ()
    baseline_server: Annotated[str, BASELINE_SERVER] = ""
    concurrency: Annotated[
        str,
        Option(
            ("--concurrency",),
            "Requests that a server gets at a time, as in 1,8; each number is measured on its own.",
            value="LIST",
            heading=SERVER,
        ),
    ] = "1"
    connection: ConnectionOptions = field(default_factory=ConnectionOptions)
    compared: ComparedOptions = field(default_factory=ComparedOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    backend: BenchBackendOptions = field(default_factory=BenchBackendOptions)
    runs: RunOptions = field(default_factory=RunOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    format: Annotated[BenchFormat, Option(("--format",), "Format of stdout; auto: the table.", heading=g.OUTPUT)] = (
        "auto"
    )
    exports: ResultFileOptions = field(default_factory=ResultFileOptions)
    table: BenchTableOptions = field(default_factory=BenchTableOptions)
    color: g.Color = "auto"
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
    given: GivenNames = frozenset()
