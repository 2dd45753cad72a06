"""Reads and checks what `specgen generate` needs before models are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.cli.generate.options import GenerateOptions, PromptOptions
from specgen.cli.options.groups import SamplingOptions
from specgen.cli.prompt_input import read_prompt
from specgen.cli.request import (
    check_stops,
    parse_draft_length,
    parse_template_variables,
    read_lookup_files,
    system_message,
    template_source,
)
from specgen.core.errors import SettingsError
from specgen.core.settings import DraftSchedule
from specgen.runtime.pair import PairSettings, pair_settings
from specgen.text.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt as text.

    Args:
        text: What the user asks.
        system: System message, if any.
        template: The chat template; None if the text goes to the model without one.
    """

    text: str
    system: str | None
    template: ChatTemplate | None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an answer is generated from.

    Args:
        pair: The models to load.
        prompt: The prompt.
        sampling: As given; the model's own settings complete it.
        draft_length: Longest draft, and how lengths are chosen.
        max_new_tokens: As given.
        stops: Texts that end the answer.
        ignores_eos: The model's end token does not end the answer.
        strict: A failing draft is an error.
    """

    pair: PairSettings
    prompt: Prompt
    sampling: SamplingOptions
    draft_length: tuple[int, DraftSchedule]
    max_new_tokens: int | None
    stops: tuple[str, ...]
    ignores_eos: bool
    strict: bool


def read_inputs(options: GenerateOptions) -> Inputs:
    """Checks the options, and reads the prompt and the files they name.

    Raises:
        SettingsError: A value is out of range, or options exclude each other.
        PromptError: The prompt is missing, or a file can't be read.
    """
    # Ranges first: nothing is read if a value is wrong.
    options.sampling.resolve(None)
    draft_length = parse_draft_length(options.drafting.draft_tokens)
    prompt = _read(options.prompt)
    check_stops(options.answer.stops)
    lookup_texts = read_lookup_files(options.drafting.lookup_files, [options.models.draft])
    backend = options.backend.settings()
    return Inputs(
        pair_settings(
            options.load.target_settings(options.models.target, backend),
            options.load.draft_settings(options.models.draft, backend),
            lookup_texts,
        ),
        prompt,
        options.sampling,
        draft_length,
        options.answer.max_new_tokens,
        options.answer.stops,
        options.answer.ignore_eos,
        options.drafting.strict,
    )


def _read(options: PromptOptions) -> Prompt:
    text = read_prompt(
        options.prompt_argument, options.prompt, options.files, options.reads_stdin, is_chat=not options.is_raw
    )
    system = system_message(options.system)
    if options.is_raw and system is not None:
        raise SettingsError("--system needs a chat template", "omit --chat-template none")
    variables = parse_template_variables(options.chat_template_variables)
    template = None if options.is_raw else ChatTemplate(template_source(options.chat_template), variables)
    return Prompt(text, system, template)
