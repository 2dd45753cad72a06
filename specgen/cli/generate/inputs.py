"""Reads and checks what `specgen generate` needs."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.cli.generate.options import GenerateOptions, PromptOptions
from specgen.cli.options.server import check_without_server
from specgen.cli.prompt_input import read_prompt
from specgen.cli.request import (
    check_stops,
    is_default_system,
    parse_draft_length,
    parse_template_variables,
    parse_tree,
    read_lookup_files,
    system_message,
    template_source,
)
from specgen.core.errors import SettingsError
from specgen.core.settings import DraftSchedule, PairSettings, TreeSchedule
from specgen.text.chat_template import ChatTemplate, Message


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an answer is generated from.

    Args:
        options: All options; their values are checked.
        pair: The models to load.
        messages: The system message, if any, and the prompt.
        template: The chat template; None gives the prompt to the model without one.
        draft_length: Longest draft, and how lengths are chosen.
    """

    options: GenerateOptions
    pair: PairSettings
    messages: tuple[Message, ...]
    template: ChatTemplate | None
    draft_length: tuple[int, DraftSchedule]
    tree: tuple[int, TreeSchedule]


def read_inputs(options: GenerateOptions) -> Inputs:
    """Checks the options, and reads the prompt and the files they name.

    Raises:
        SettingsError: A value is out of range, or options exclude each other.
        PromptError: The prompt is missing, or a file can't be read.
    """
    check_without_server(GenerateOptions, options.given)
    # Ranges first: nothing is read if a value is wrong.
    options.sampling.resolve(None)
    draft_length = parse_draft_length(options.drafting.draft_tokens)
    tree = parse_tree(options.drafting.tree)
    messages, template = _read_messages(options.prompt)
    check_stops(options.answer.stops)
    lookup_texts = read_lookup_files(options.drafting.lookup_files, [options.models.draft])
    models, backend = options.models, options.backend.settings()
    pair = options.load.pair_settings(models.target, models.draft, backend, lookup_texts)
    return Inputs(options, pair, messages, template, draft_length, tree)


def _read_messages(options: PromptOptions) -> tuple[tuple[Message, ...], ChatTemplate | None]:
    is_raw = options.chat_template == "none"
    text = read_prompt(options.prompt_argument, options.prompt, options.files, options.reads_stdin, is_chat=not is_raw)
    system = system_message(options.system)
    if is_raw and is_default_system(options.system):
        system = None
    if is_raw and system is not None:
        raise SettingsError("--system needs a chat template", "omit --chat-template none")
    variables = parse_template_variables(options.chat_template_variables)
    template = None if is_raw else ChatTemplate(template_source(options.chat_template), variables)
    return (*([] if system is None else [Message("system", system)]), Message("user", text)), template
