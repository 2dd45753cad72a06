"""Reads and checks what `specgen bench` needs before models are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specgen.bench.prompts import BenchPrompt, PromptFormat
from specgen.bench.results import BenchSettings
from specgen.cli.bench.choices import DraftChoice, on_both_backends, parse_drafts, parse_lengths
from specgen.cli.bench.options import BenchOptions, RunOptions
from specgen.cli.bench.prompts import read_prompts
from specgen.cli.options.models import AUTO
from specgen.cli.request import read_lookup_files, template_source
from specgen.core.errors import SettingsError
from specgen.core.settings import ModelSettings, SamplingSettings

DEFAULT_LENGTHS = "2,4,auto"
QUICK_LENGTHS = "4,auto"
QUICK_PROMPTS = 3
QUICK_TOKENS = 24
QUICK_REPEATS = 3
QUICK_SECONDS = 40.0
"""Time for all of `--quick` except loading."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is measured.

    Args:
        models: How to load the target and its drafts, by backend; the key is empty unless two backends are compared.
        drafts: Measured on each backend.
        lengths: Draft lengths.
        prompts: What to answer.
        settings: How to measure.
        prompt_format: Whether prompts get a chat template, and which.
        lookup_texts: Texts that lookup searches in addition to the prompt.
    """

    models: Mapping[str, tuple[ModelSettings, ModelSettings]]
    drafts: Sequence[DraftChoice]
    lengths: Sequence[str]
    prompts: Sequence[BenchPrompt]
    settings: BenchSettings
    prompt_format: PromptFormat
    lookup_texts: tuple[str, ...]


def read_inputs(options: BenchOptions) -> Inputs:
    """Checks the options and reads the files they name.

    Raises:
        SettingsError: A value is invalid, or options exclude each other.
        PromptError: A file can't be read.
    """
    compared, runs = options.compared, options.runs
    if options.limits.check and runs.temperature > 0:
        raise SettingsError("--check compares greedy texts, but --temperature is above 0", "omit --temperature")
    drafts = parse_drafts(compared.drafts or [AUTO], options.load.draft_quant)
    lengths = parse_lengths(compared.draft_tokens or (QUICK_LENGTHS if runs.quick else DEFAULT_LENGTHS))
    settings = _bench_settings(runs)
    lookup_texts = read_lookup_files(compared.lookup_files, compared.drafts or ["lookup"])
    prompts = read_prompts(runs.prompts, runs.num_prompts or (QUICK_PROMPTS if runs.quick else None))
    prompt_format = PromptFormat(runs.chat_template == "none", template_source(runs.chat_template))
    return Inputs(_models(options), drafts, lengths, prompts, settings, prompt_format, lookup_texts)


def _bench_settings(options: RunOptions) -> BenchSettings:
    return BenchSettings(
        num_tokens=options.max_new_tokens or (QUICK_TOKENS if options.quick else 128),
        num_repeats=options.repeats or (QUICK_REPEATS if options.quick else 5),
        num_warmups=options.warmup,
        sampling=SamplingSettings(temperature=options.temperature, seed=options.seed),
        stops_at_end=not options.ignore_eos,
        time_limit_seconds=QUICK_SECONDS if options.quick else None,
    )


def _models(options: BenchOptions) -> dict[str, tuple[ModelSettings, ModelSettings]]:
    name = options.backend.backend
    backend = options.backend.llama_cpp.settings("auto" if name == "both" else name)
    target = options.load.target_settings(options.target, backend)
    draft = options.load.draft_settings("", backend)
    return on_both_backends(target, draft) if name == "both" else {"": (target, draft)}
