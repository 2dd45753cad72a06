"""Reads the prompts of a benchmark."""

from __future__ import annotations

from pathlib import Path

from specgen.bench.prompts import BenchPrompt, bundled_prompts, choose_evenly, parse_prompts
from specgen.cli.request import read_text


def read_prompts(path: Path | None, limit: int | None = None) -> list[BenchPrompt]:
    """Returns the prompts of a file, or the bundled ones; at most `limit`, from as many categories as possible.

    Raises:
        PromptError: The file can't be read or contains no prompts.
    """
    prompts = bundled_prompts() if path is None else parse_prompts(read_text(path, "prompts"), str(path))
    return prompts if limit is None else choose_evenly(prompts, limit)
