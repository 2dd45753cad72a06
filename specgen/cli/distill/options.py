"""The options of `specgen distill`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from specgen.cli.app_spec import Option
from specgen.cli.options import groups as g
from specgen.cli.options.models import HubOptions

HELP = "Make a small draft for a target: a few layers, trained on texts that the target writes."
EPILOG = """The draft uses the target's own embeddings and head. After Ctrl-C or a kill the same command continues; \
at most two minutes of work are lost.

Examples:

specgen distill Qwen/Qwen2.5-0.5B-Instruct -o my-draft

specgen generate -t Qwen/Qwen2.5-0.5B-Instruct -d my-draft "Why is the sky blue?\""""


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """The shape of the draft."""

    HEADING = "Draft"

    kind: Annotated[
        Literal["features", "layers"],
        Option(("--kind",), "features: the draft reads the target's last hidden states; layers: it reads tokens only."),
    ] = "features"
    num_layers: Annotated[
        int | None, Option(("--num-layers",), "Layers of the draft, 1 to 8. Default: as many as --layers names, or 1.")
    ] = None
    layers: Annotated[
        str | None,
        Option(
            ("--layers",),
            "Layers of the target to start from, counted from 0, as in 27,29. Default: the last ones; with --kind "
            "layers spread over all.",
            value="LIST",
        ),
    ] = None
    vocab: Annotated[int, Option(("--vocab",), "Propose only this many of the most frequent tokens; 0: all.")] = 8192


@dataclass(frozen=True, slots=True)
class DataOptions:
    """The texts that the draft learns from, and those it is measured on."""

    HEADING = "Data"

    prompts: Annotated[
        Path | None,
        Option(("--prompts",), "Your own prompts instead of the bundled ones: JSON lines, or one prompt per line."),
    ] = None
    held_out: Annotated[
        Path | None,
        Option(("--held-out",), "Prompts to measure on, never trained on. Default: those of specgen bench."),
    ] = None
    chat_template_variables: g.ChatTemplateVariables = None
    num_prompts: Annotated[int, Option(("--num-prompts",), "Most prompts that the target answers.")] = 4000
    max_new_tokens: Annotated[int, Option(("-n", "--max-new-tokens"), "Most tokens of one answer.")] = 160
    texts: Annotated[
        Path | None,
        Option(
            ("--texts",),
            "Keep the target's texts in this folder, and use those already in it. Default: deleted when done.",
            value="FOLDER",
        ),
    ] = None
    greedy_share: Annotated[
        float, Option(("--greedy-share",), "Share of greedy answers; the others have temperature 0.7.")
    ] = 0.7
    batch_size: Annotated[int, Option(("--batch-size",), "Answers written at a time.")] = 64


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How the draft is trained."""

    HEADING = "Training"

    epochs: Annotated[float, Option(("--epochs",), "Passes over the texts.")] = 4.0
    learning_rate: Annotated[float, Option(("--learning-rate",), "Peak learning rate.")] = 1e-3
    batch_tokens: Annotated[int, Option(("--batch-tokens",), "Tokens of one step.")] = 2048
    unroll: Annotated[int, Option(("--unroll",), "Draft steps to train, 1 to 4.")] = 2
    seed: Annotated[int, Option(("--seed",), "Seed: the same seed makes the same draft.")] = 0


@dataclass(frozen=True, slots=True)
class DistillOptions:
    """The options of `specgen distill`."""

    target: Annotated[
        str,
        Option(help='Model to make a draft for: hub id, folder or .gguf file; "" is the built-in one.', value="TARGET"),
    ]
    output: Annotated[Path, Option(("-o", "--output"), "Folder for the draft.", value="FOLDER", heading=g.OUTPUT)]
    draft: DraftOptions = field(default_factory=DraftOptions)
    data: DataOptions = field(default_factory=DataOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    hub: HubOptions = field(default_factory=HubOptions)
    color: g.Color = "auto"
    verbosity: g.VerbosityOptions = field(default_factory=g.VerbosityOptions)
