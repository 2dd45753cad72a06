"""Reads and checks what `specgen generate` needs, and loads its models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from specgen.cli.generate.options import GenerateOptions, PromptOptions
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
from specgen.core.progress import ProgressListener
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS, DecodeSettings, DraftSchedule
from specgen.runtime.pair import Pair, PairSettings, pair_settings, resolve_pair
from specgen.text.chat_template import ChatTemplate, Message, encode_text

if TYPE_CHECKING:
    from specgen.runtime.generation import Generation


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

    def encode(self, pair: Pair) -> list[int]:
        """Returns the prompt as token ids.

        Raises:
            LoadError: The chat template can't be used.
        """
        if self.template is None:
            return encode_text(pair.tokenizer, self.text)
        messages = [] if self.system is None else [Message("system", self.system)]
        return self.template.encode(pair.tokenizer, [*messages, Message("user", self.text)])


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an answer is generated from.

    Args:
        pair: The models to load.
        prompt: The prompt.
        draft_length: Longest draft, and how lengths are chosen.
        options: All options; their values are checked.
    """

    pair: PairSettings
    prompt: Prompt
    draft_length: tuple[int, DraftSchedule]
    options: GenerateOptions


def read_inputs(options: GenerateOptions) -> Inputs:
    """Checks the options, and reads the prompt and the files they name.

    Raises:
        SettingsError: A value is out of range, or options exclude each other.
        PromptError: The prompt is missing, or a file can't be read.
    """
    # Ranges first: nothing is read if a value is wrong.
    options.sampling.resolve(None)
    draft_length = parse_draft_length(options.drafting.draft_tokens)
    prompt = _read_prompt(options.prompt)
    check_stops(options.answer.stops)
    lookup_texts = read_lookup_files(options.drafting.lookup_files, [options.models.draft])
    backend = options.backend.settings()
    target = options.load.target_settings(options.models.target, backend)
    draft = options.load.draft_settings(options.models.draft, backend)
    return Inputs(pair_settings(target, draft, lookup_texts), prompt, draft_length, options)


def _read_prompt(options: PromptOptions) -> Prompt:
    is_raw = options.chat_template == "none"
    text = read_prompt(options.prompt_argument, options.prompt, options.files, options.reads_stdin, is_chat=not is_raw)
    system = system_message(options.system)
    if is_raw and system is not None:
        raise SettingsError("--system needs a chat template", "omit --chat-template none")
    variables = parse_template_variables(options.chat_template_variables)
    template = None if is_raw else ChatTemplate(template_source(options.chat_template), variables)
    return Prompt(text, system, template)


def open_generation(inputs: Inputs, progress: ProgressListener) -> Generation:
    """Loads the models and returns a generation that is ready to start. Call it once libraries are prepared.

    Raises:
        LoadError: A model is missing or damaged, or the chat template can't be used.
        PairError: Draft and target do not share a vocabulary.
        PromptError: The prompt is longer than the context window.
    """
    from specgen.runtime import learned_costs
    from specgen.runtime.generation import Generation, Request
    from specgen.runtime.loaded_models import load_models

    pair, options = resolve_pair(inputs.pair, progress), inputs.options
    answer = options.answer
    ids = inputs.prompt.encode(pair)
    sampling, source = options.sampling.resolve(pair.sampling_defaults)
    max_new_tokens = pair.resolve_max_new_tokens(len(ids), answer.max_new_tokens, DEFAULT_MAX_NEW_TOKENS)
    end_ids = frozenset[int]() if answer.ignore_eos else pair.end_ids
    settings = DecodeSettings(max_new_tokens, *inputs.draft_length, end_ids, options.drafting.strict)
    request = Request(ids, settings, sampling, source, answer.stops, is_raw=inputs.prompt.template is None)
    models = load_models(pair, progress)
    learned_costs.load(models)
    return Generation(models, request)
