"""Reads and checks what `specgen bench` needs before models are loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from specgen.bench.results import BenchSettings
from specgen.cli.bench.options import BenchOptions, RunOptions
from specgen.cli.options.models import OFF
from specgen.cli.prompt_input import read_text
from specgen.cli.request import (
    parse_draft_length,
    parse_template_variables,
    parse_tree,
    read_lookup_files,
    template_source,
)
from specgen.core.draft_name import AUTO_DRAFT, LOOKUP, LOOKUP_SUFFIX, DraftName
from specgen.core.errors import SettingsError
from specgen.core.settings import MAX_DRAFT_TOKENS, BackendSettings, ModelSettings, Quantization
from specgen.text.prompts import PromptEntry, PromptFormat, bundled_prompts, choose_evenly, parse_prompts

DEFAULT_LENGTHS = "2,4,auto"
QUICK_LENGTHS = "4,auto"
QUICK_PROMPTS = 3
QUICK_TOKENS = 24
QUICK_REPEATS = 3
QUICK_SECONDS = 40.0
"""Time for all of `--quick` except loading."""
_RANGE = re.compile(r"(\d{1,3})-(\d{1,3})(?:\+(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class DraftChoice:
    """A draft to measure.

    Args:
        key: Identifies it in tables and JSON: the value of `--draft` for it, with the weight format.
        name: The same without the format.
        quant: The weight format.
    """

    key: str
    name: DraftName
    quant: Quantization


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is measured.

    Args:
        models: How to load the target and its drafts, by backend; the key is empty unless two backends are compared.
        drafts: Measured on each backend.
        lengths: Draft lengths, as on the command line.
        trees: Sizes of drafts that branch, as on the command line.
        prompt_format: Whether prompts get a chat template, and which.
        lookup_texts: Texts that lookup searches in addition to the prompt.
        peers: Other programs to measure, as on the command line.
    """

    models: Mapping[str, tuple[ModelSettings, ModelSettings]]
    drafts: Sequence[DraftChoice]
    lengths: Sequence[str]
    trees: Sequence[str | None]
    prompts: Sequence[PromptEntry]
    settings: BenchSettings
    prompt_format: PromptFormat
    lookup_texts: tuple[str, ...]
    peers: tuple[str, ...] = ()


def read_inputs(options: BenchOptions) -> Inputs:
    """Checks the options and reads the files they name.

    Raises:
        SettingsError: A value is invalid, or options exclude each other.
        PromptError: A file can't be read.
    """
    compared, runs = options.compared, options.runs
    if options.limits.check and runs.temperature > 0:
        raise SettingsError("--check compares greedy texts, but --temperature is above 0", "omit --temperature")
    _check_peers(compared.peers, runs)
    drafts = parse_drafts(compared.drafts or [AUTO_DRAFT], options.load.draft_quant)
    lengths = parse_lengths(compared.draft_tokens or (QUICK_LENGTHS if runs.quick else DEFAULT_LENGTHS))
    trees = parse_trees(compared.trees, is_quick=runs.quick)
    settings = bench_settings(runs)
    lookup_texts = read_lookup_files(compared.lookup_files, compared.drafts or [LOOKUP])
    prompts = read_prompts(runs.prompts, runs.num_prompts or (QUICK_PROMPTS if runs.quick else None))
    variables = settings.template_variables
    prompt_format = PromptFormat(runs.chat_template == "none", template_source(runs.chat_template), variables)
    return Inputs(
        _models(options), drafts, lengths, trees, prompts, settings, prompt_format, lookup_texts, compared.peers
    )


def _check_peers(names: Sequence[str], runs: RunOptions) -> None:
    """Raises `SettingsError` for a `--peer` that is unknown, or that can't be measured."""
    for name in names:
        if name != "transformers" and name.partition("=")[0] != "llama-cpp":
            raise SettingsError(f"invalid --peer {name!r}", "give transformers, llama-cpp or llama-cpp=FILE.gguf")
    if names and runs.temperature > 0:
        raise SettingsError("--peer measures greedy text, but --temperature is above 0", "omit --temperature")


def parse_drafts(names: Sequence[DraftName], quant: Quantization) -> list[DraftChoice]:
    """Returns the drafts to compare, each once. `MODEL:nf4` overrides `quant`; `MODEL:nf4+lookup` adds lookup.

    Raises:
        SettingsError: `none` is among them.
    """
    choices = []
    for given in names:
        name = given.text.removesuffix(LOOKUP_SUFFIX)
        suffix = given.text.removeprefix(name)
        model, separator, word = name.rpartition(":")
        format_: Quantization = "auto" if name in ("lookup", "auto") else quant
        if separator and (found := next((one for one in get_args(Quantization) if one == word), None)):
            name, format_ = model, found
        if name == "none":
            raise SettingsError("invalid --draft 'none': the target alone is always measured", "omit it")
        key = f"{name}{'' if format_ == 'auto' else f':{format_}'}{suffix}"
        choices.append(DraftChoice(key, DraftName(name + suffix), format_))
    return list(dict.fromkeys(choices))


def parse_lengths(text: str) -> list[str]:
    """Returns draft lengths from `1,2,4`, `1-8`, `2-8+2`, `auto` or a mixture, each once.

    Raises:
        SettingsError: A part is not one of these, or is out of range.
    """
    lengths: list[str] = []
    for part in map(str.strip, text.split(",")):
        span = _RANGE.fullmatch(part)
        if span is None:
            lengths.append(part)
            continue
        first, last, step = int(span[1]), int(span[2]), int(span[3] or 1)
        if first > last or step == 0:
            raise SettingsError(f"invalid --draft-tokens {part!r}", "give the smaller length first, as in 2-8+2")
        lengths += map(str, range(first, last + 1, step))
    for length in lengths:
        try:
            num_draft_tokens, _ = parse_draft_length(length)
        except SettingsError as error:
            hint = f"give lengths as in 1,2,4 or 1-8 or 2-8+2, up to {MAX_DRAFT_TOKENS}, or auto"
            raise SettingsError(error.message, hint) from None
        if num_draft_tokens == 0:
            raise SettingsError("invalid --draft-tokens '0': the target alone is always measured", "omit 0")
    return list(dict.fromkeys(lengths))


def parse_trees(text: str | None, *, is_quick: bool) -> list[str | None]:
    """Returns the sizes of trees in `off,4,auto`, each once; raises `SettingsError` for any other word.

    Without `text`, it is what `generate` does, None, and drafts without branches unless the measurement is quick.
    """
    if text is None:
        return [None] if is_quick else [OFF, None]
    trees: list[str | None] = list(dict.fromkeys(map(str.strip, text.split(","))))
    for tree in trees:
        parse_tree(tree)
    return trees


def read_prompts(path: Path | None, limit: int | None = None) -> list[PromptEntry]:
    """Returns the prompts of a file, or the bundled ones; at most `limit`, from as many categories as possible.

    Raises:
        PromptError: The file can't be read or contains no prompts.
    """
    prompts = bundled_prompts() if path is None else parse_prompts(read_text(path, "prompts"), str(path))
    return prompts if limit is None else choose_evenly(prompts, limit)


def bench_settings(options: RunOptions) -> BenchSettings:
    """Returns how to measure; raises `SettingsError` for a value out of range."""
    return BenchSettings(
        num_tokens=options.max_new_tokens or (QUICK_TOKENS if options.quick else 128),
        num_repeats=options.repeats or (QUICK_REPEATS if options.quick else 5),
        num_warmups=options.warmup,
        sampling=options.sampling(),
        stops_at_end=not options.ignore_eos,
        time_limit_seconds=QUICK_SECONDS if options.quick else None,
        template_variables=parse_template_variables(options.chat_template_variables),
    )


def _models(options: BenchOptions) -> dict[str, tuple[ModelSettings, ModelSettings]]:
    name = options.backend.backend
    backend = options.backend.llama_cpp.settings("auto" if name == "both" else name)
    target = options.load.target_settings(options.target, backend)
    draft = options.load.draft_settings(backend)
    return on_both_backends(target, draft) if name == "both" else {"": (target, draft)}


def on_both_backends(target: ModelSettings, draft: ModelSettings) -> dict[str, tuple[ModelSettings, ModelSettings]]:
    """Returns how to load a GGUF target with llama.cpp, and converted with torch, with its drafts.

    `--dtype` applies to what torch runs, and the options of llama.cpp only to what llama.cpp runs.
    """
    llama_cpp, torch = replace(target.backend, name="llama.cpp"), BackendSettings("torch")
    # Next to a target on llama.cpp, a draft that is not a GGUF file runs on torch.
    drafts = replace(draft, dtype="auto", backend=replace(llama_cpp, name="auto"))
    return {
        "llama.cpp": (replace(target, backend=llama_cpp, dtype="auto"), drafts),
        "torch": (replace(target, backend=torch), replace(draft, backend=torch)),
    }
