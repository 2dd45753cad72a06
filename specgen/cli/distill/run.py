"""`specgen distill`: a target in, a folder with a small draft for it out. Heavy modules are imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from specgen.cli import options as o
from specgen.cli.signals import Stopped, StopSignals
from specgen.core.errors import MemoryShortageError, SettingsError
from specgen.core.settings import ModelSettings

if TYPE_CHECKING:
    from specgen.cli.streams import Messages
    from specgen.distill.run import DistillResult
    from specgen.distill.settings import DistillRequest

DRAFT = "Draft"
DATA = "Data"
TRAINING = "Training"
EPILOG = "\n\n".join(
    [
        "The draft is a few layers on the target's own embeddings and head, trained on texts the target writes. Ctrl-C "
        "and kill lose at most two minutes: the same command goes on.",
        "Examples:",
        "specgen distill Qwen/Qwen2.5-0.5B-Instruct -o my-draft",
        'specgen generate -t Qwen/Qwen2.5-0.5B-Instruct -d my-draft "Why is the sky blue?"',
    ]
)


def distill(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help='Model to make a draft for: hub id, folder or .gguf file; "" is the built-in one.'
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the draft goes.", rich_help_panel=o.OUTPUT)
    ],
    kind: Annotated[
        Literal["features", "layers"],
        typer.Option(
            "--kind", help="features reads the target's last hidden states; layers only tokens.", rich_help_panel=DRAFT
        ),
    ] = "features",
    num_layers: Annotated[
        int | None,
        typer.Option(
            "--num-layers",
            help="Layers of the draft, 1 to 8. Default: as many as --layers names, or 1.",
            rich_help_panel=DRAFT,
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="LIST",
            help="Layers of the target to begin with, from 0: 27,29. Default: the last ones, or, without features, "
            "some from all over.",
            rich_help_panel=DRAFT,
            show_default=False,
        ),
    ] = None,
    num_draft_ids: Annotated[
        int,
        typer.Option(
            "--vocab", metavar="N", help="Tokens it can propose, the most frequent ones; 0: all.", rich_help_panel=DRAFT
        ),
    ] = 8192,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Own prompts instead of the bundled ones: JSON lines, or a prompt per line.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out",
            help="Prompts to measure on, never trained on; default: those of specgen bench.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", help="Prompts the target answers, at most.", rich_help_panel=DATA)
    ] = 4000,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", help="Tokens of one answer, at most.", rich_help_panel=DATA)
    ] = 160,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            metavar="FOLDER",
            help="Keep the target's texts there, and take those that are there; default: dropped with the work.",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    greedy_share: Annotated[
        float, typer.Option("--greedy-share", help="Share of greedy answers; others at 0.7.", rich_help_panel=DATA)
    ] = 0.7,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Answers written at once.", rich_help_panel=DATA)
    ] = 64,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the texts.", rich_help_panel=TRAINING)] = 4.0,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", help="At its peak.", rich_help_panel=TRAINING)
    ] = 1e-3,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", help="Tokens of one step.", rich_help_panel=TRAINING)
    ] = 2048,
    unroll: Annotated[
        int, typer.Option("--unroll", help="Drafted steps that are trained, 1 to 4.", rich_help_panel=TRAINING)
    ] = 2,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same draft.", rich_help_panel=TRAINING)] = 0,
    device: o.Device = "auto",
    revision: o.Revision = None,
    offline: o.Offline = False,
    color: o.Color = "auto",
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Make a small draft for a target: layers of its own, trained on its own texts."""
    from rich.text import Text

    from specgen.cli.bench.choices import prompts_for
    from specgen.cli.streams import Messages
    from specgen.distill.settings import DistillRequest, DistillSettings, TextSettings, TrainSettings

    chosen = _layers_from(layers)
    settings = DistillSettings(
        kind,
        (len(chosen) or 1) if num_layers is None else num_layers,
        num_draft_ids,
        chosen,
        seed,
        TextSettings(num_prompts, max_new_tokens=max_new_tokens, greedy_share=greedy_share, batch_size=batch_size),
        TrainSettings(epochs, batch_tokens, learning_rate, unroll=unroll),
    )
    own = [] if prompts is None else [prompt.messages[-1].content for prompt in prompts_for(prompts, None)]
    measured = [prompt.messages[-1].content for prompt in prompts_for(held_out, None)]
    models = ModelSettings(target, device=device, revision=revision, offline=offline)
    request = DistillRequest(models, settings, output, measured, own, texts)
    messages = Messages(color, quiet)
    with StopSignals():
        try:
            made = _distill(request, messages, verbose)
        except Stopped as stopped:
            messages.info(Text("stopped; the same command goes on with what is on disk"))
            raise typer.Exit(stopped.exit_code) from None
        except MemoryError as error:
            raise MemoryShortageError("out of memory while making a draft", "lower --batch-size") from error
    _tell(made, messages)


def _distill(request: DistillRequest, messages: Messages, verbose: int) -> DistillResult:
    from specgen.render.distill_progress import DistillBar
    from specgen.render.progress import LoadProgress

    with LoadProgress(messages.console, quiet=messages.quiet, verbose=verbose > 0) as progress:
        progress.stage("starting")
        from specgen.loading.libraries import prepare_libraries

        prepare_libraries(verbose > 1)
        from specgen.distill.run import Distillation

        distillation = Distillation(request, progress)
    with DistillBar(messages.console, quiet=messages.quiet) as bar:
        return distillation.run(bar)


def _layers_from(text: str | None) -> tuple[int, ...]:
    """The numbers of `27,29`; none where nothing was given."""
    if text is None:
        return ()
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise SettingsError(f"invalid --layers {text!r}", "give numbers with commas, like 27,29") from None


def _tell(made: DistillResult, messages: Messages) -> None:
    from rich.text import Text

    from specgen.render.sanitize import one_line

    alpha = made.acceptance.alpha(made.length)
    messages.info(
        Text(
            f"{one_line(str(made.folder))}: {made.num_bytes / 1e6:.1f} MB, α {alpha:.2f} on held-out prompts, drafts "
            f"of {made.length} should give {made.speedup:.2f}x; its card is README.md there"
        )
    )
