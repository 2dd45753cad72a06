"""`specgen bench`: drafts and lengths in, what each is worth on this machine out. Heavy modules are imported inside."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from specgen.cli import engine_options as e
from specgen.cli import options as o
from specgen.cli.bench import choices as b
from specgen.cli.errors import Interrupted
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.stdout import discard_stdout
from specgen.core.errors import SettingsError, SpecgenError
from specgen.core.settings import BackendSettings, ModelSettings, SamplingSettings

MEASURING = "Measuring"

EPILOG = "\n\n".join(
    [
        "TAR: accepted / drafted tokens. α: accepted / tested tokens, the figure to compare drafts by.",
        "speedup: seconds per token of the target alone / with the draft, decoding only; ± half of its 95 % interval. "
        "predicted: what the measured costs of passes say about the same rounds.",
        "text: whether greedy answers were the target's own: same, near-tie@I (rounding decided token I), DIFFERENT@I.",
        "Examples:",
        "specgen bench --quick",
        "specgen bench -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct -d lookup -k 1-4,auto --plot k.svg",
        "specgen bench -t TARGET -d DRAFT:none -d DRAFT:nf4 -k 4 --check --fail-under-speedup 1.2 --format json",
        "specgen bench -t TARGET.gguf --backend both",
    ]
)


def bench(
    drafts: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            "-d",
            metavar="MODEL[:QUANT][+lookup]|auto|lookup",
            help="A draft to measure, with the form of its weights if it matters. Can be repeated; default: auto.",
            rich_help_panel=o.MODELS,
            show_default=False,
        ),
    ] = None,
    draft_tokens: Annotated[
        str | None,
        typer.Option(
            "--draft-tokens",
            "--num-draft-tokens",
            "-k",
            metavar="LIST",
            help="Draft lengths, as in 1,2,4,8 or 1-8 or 2-8+2 or auto; default 2,4,auto.",
            rich_help_panel=o.SPECULATION,
            show_default=False,
        ),
    ] = None,
    lookup_file: o.LookupFiles = None,
    target: o.Target = "",
    quant: o.Quant = "auto",
    draft_quant: o.DraftQuant = "auto",
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    draft_device: o.DraftDevice = None,
    revision: o.Revision = None,
    draft_revision: o.DraftRevision = None,
    offline: o.Offline = False,
    backend: b.Backend = "auto",
    gpu_layers: e.GpuLayers = None,
    context_size: e.ContextSize = None,
    threads: e.Threads = None,
    num_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "--max-tokens",
            "-n",
            min=2,
            help="Tokens of each run; default 128.",
            rich_help_panel=MEASURING,
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            "-r",
            min=1,
            help="Times every prompt is run in every setting; default 5. One repeat gives no interval.",
            rich_help_panel=MEASURING,
            show_default=False,
        ),
    ] = None,
    warmup: Annotated[
        int,
        typer.Option(
            "--warmup", "-w", min=0, help="Runs of each setting that are not counted.", rich_help_panel=MEASURING
        ),
    ] = 1,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="JSON lines with prompt, messages or turns, and category; or a prompt per line. Default: own ones.",
            rich_help_panel=MEASURING,
            show_default=False,
        ),
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(
            "--num-prompts",
            min=1,
            help="Only so many prompts, of as many categories as possible.",
            rich_help_panel=MEASURING,
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", "--temp", help="0 is greedy.", rich_help_panel=o.SAMPLING)
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of every run.", rich_help_panel=o.SAMPLING)] = 0,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos/--stop-at-eos", help="Equal lengths, or the model's own.", rich_help_panel=MEASURING
        ),
    ] = True,
    chat_template: o.ChatTemplate = "auto",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A first answer in a minute: -k 4,auto -n 24 -r 3 --num-prompts 3, less if time runs out.",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit with 6 if a greedy text differs from the target's own by more than rounding.",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    fail_under_speedup: Annotated[
        float | None,
        typer.Option(
            "--fail-under-speedup",
            metavar="X",
            help="Exit with 9 if the fastest setting's speedup is below X.",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    fail_under_tar: Annotated[
        float | None,
        typer.Option(
            "--fail-under-tar",
            metavar="X",
            help="Exit with 9 if the fastest setting's TAR, a fraction, is below X.",
            rich_help_panel=MEASURING,
        ),
    ] = None,
    form: Annotated[
        b.BenchFormat,
        typer.Option("--format", help="What goes to stdout; auto: the table.", rich_help_panel=o.OUTPUT),
    ] = "auto",
    export_json: Annotated[
        Path | None, typer.Option("--export-json", help="All runs as JSON.", rich_help_panel=o.OUTPUT)
    ] = None,
    export_csv: Annotated[
        Path | None, typer.Option("--export-csv", help="A row per run.", rich_help_panel=o.OUTPUT)
    ] = None,
    export_markdown: Annotated[
        Path | None, typer.Option("--export-md", "--export-markdown", help="The table.", rich_help_panel=o.OUTPUT)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Speedup and acceptance as .svg or .png; needs: pip install 'specgen-cli[plot]'",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    by_category: Annotated[
        bool, typer.Option("--by-category", help="Speedups by category, too.", rich_help_panel=o.OUTPUT)
    ] = False,
    chart: Annotated[
        bool, typer.Option("--chart/--no-chart", help="Bars under the table on a terminal.", rich_help_panel=o.OUTPUT)
    ] = True,
    color: o.Color = "auto",
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Measure which draft and which draft length serve a target on this machine, or that none does."""
    from specgen.bench.results import BenchSettings
    from specgen.cli.bench.measure import difference_error, limit_error, measure, open_benchmark, tell
    from specgen.cli.bench.output import BenchOutput, Exports
    from specgen.cli.request import lookup_texts_from
    from specgen.cli.streams import Messages

    messages = Messages(color, quiet)
    if check and temperature > 0:
        raise SettingsError("--check compares greedy texts", "leave out --temperature")
    choices = b.drafts_from(drafts or [o.DEFAULT_DRAFT], draft_quant)
    lengths = b.lengths_from(draft_tokens or (b.QUICK_LENGTHS if quick else b.DEFAULT_LENGTHS))
    config = BenchSettings(
        num_tokens=num_tokens or (b.QUICK_TOKENS if quick else 128),
        num_repeats=repeats or (b.QUICK_REPEATS if quick else 5),
        num_warmups=warmup,
        sampling=SamplingSettings(temperature=temperature, seed=seed),
        stops_at_end=not ignore_eos,
        time_limit_seconds=b.QUICK_SECONDS if quick else None,
    )
    lookup_texts = lookup_texts_from(lookup_file, drafts or ["lookup"])
    chosen = b.prompts_for(prompts, num_prompts or (b.QUICK_PROMPTS if quick else None))
    exports = Exports(export_json, export_csv, export_markdown, plot)
    exports.check()
    output = BenchOutput(form, exports, color, messages)
    engine = BackendSettings("auto" if backend == "both" else backend, gpu_layers, context_size, threads)
    models = ModelSettings(target, quant, dtype, device, revision, offline, engine)
    places = b.DraftPlaces(dtype, draft_device or device, draft_revision, offline, engine)
    engines = b.on_both_engines(models, places) if backend == "both" else {"": (models, places)}
    error: SpecgenError | None = None
    with StopSignals() as signals:
        try:
            benchmark = open_benchmark(
                engines, choices, lengths, chosen, config, chat_template, lookup_texts, messages, verbose
            )
            report = measure(benchmark, output, messages, signals)
            error = (difference_error(report) if check else None) or limit_error(
                report, fail_under_speedup, fail_under_tar
            )
            tell(report, output, messages, None if signals.exit_code else error, by_category=by_category, chart=chart)
        except SpecgenError as failure:
            output.fail(failure)
            raise
        except BrokenPipeError:
            discard_stdout()
            # A reader that left hides the table, and no limit that was missed.
            if error is None:
                return
        except Stopped as stopped:
            with suppress(BrokenPipeError, SpecgenError):
                output.fail(Interrupted(stopped.exit_code))
            raise typer.Exit(stopped.exit_code) from None
        if signals.exit_code:
            raise typer.Exit(signals.exit_code)
    if error is not None:
        raise error
