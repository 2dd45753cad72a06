"""The options that say what runs a model, shared by all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from specgen.core.settings import BackendName

ENGINE = "Engine"

Backend = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        envvar="SPECGEN_BACKEND",
        help="What runs a model. auto: llama.cpp for GGUF files if the extra gguf is installed, else transformers.",
        rich_help_panel=ENGINE,
    ),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        metavar="N",
        min=-1,
        help="llama.cpp: layers on the GPU, -1 is all; default: all where it can use one and --device is not cpu.",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
ContextSize = Annotated[
    int | None,
    typer.Option(
        "--context-size",
        metavar="TOKENS",
        min=2,
        help="llama.cpp: size of the cache; default: the model's window, at most 8192.",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=1024,
        help="llama.cpp: threads; default: one for each physical core.",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
