"""Options as given in, checked settings and prompt ids out. Heavy modules are imported inside."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specgen.cli.prompt_input import as_utf8, decode, read_capped
from specgen.core.errors import PromptError, SettingsError
from specgen.core.settings import (
    LONGEST_AUTO_DRAFT,
    MAX_DRAFT_TOKENS,
    DecodeSettings,
    DraftSchedule,
    ModelSettings,
    SamplingSettings,
)

if TYPE_CHECKING:
    from specgen.runtime.generation import Request
    from specgen.runtime.pair import Pair, PairSettings

DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How the prompt is made into ids.

    Args:
        text: The prompt.
        system: System message, if any.
        template: `auto`, `none` or a file name.
        template_options: Variables for the template.
    """

    text: str
    system: str | None
    template: str
    template_options: dict[str, Any]

    @property
    def is_raw(self) -> bool:
        """Whether the prompt goes to the model without a chat template."""
        return self.template == "none"


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """Sampling options as given; None means the model's own."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    same_text: bool | None = None

    def resolve(self, defaults: SamplingSettings | None) -> tuple[SamplingSettings, str]:
        """Effective settings, and where they come from: `options`, `model` or `default`."""
        base = defaults or SamplingSettings()
        given = {
            name: value
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
            if (value := getattr(self, name)) is not None
        }
        seed = self.seed if self.seed is not None else random.SystemRandom().randrange(2**31)
        values = {
            name: given.get(name, getattr(base, name))
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        }
        source = "options" if given else "model" if defaults is not None else "default"
        same_text = self.seed is not None if self.same_text is None else self.same_text
        return SamplingSettings(**values, seed=seed, same_text=same_text), source


BESIDE = "+lookup"
"""Behind a draft model's name: prompt lookup beside it, each round the one that is expected to bring more."""


def pair_settings(target: ModelSettings, draft: ModelSettings, lookup_texts: tuple[str, ...] = ()) -> PairSettings:
    """What to load: `draft` is named as on the command line."""
    from specgen.runtime.pair import PairSettings

    if draft.name in ("lookup", "none"):
        return PairSettings(target, "lookup" if draft.name == "lookup" else "none", None, lookup_texts)
    if draft.name.endswith(BESIDE):
        model = replace(draft, name=draft.name.removesuffix(BESIDE))
        return PairSettings(target, "model+lookup", model, lookup_texts)
    return PairSettings(target, "auto" if draft.name == "auto" else "model", draft, lookup_texts)


def lookup_texts_from(paths: Sequence[Path] | None, draft_names: Sequence[str]) -> tuple[str, ...]:
    """Contents of `--lookup-file`.

    Raises:
        SettingsError: None of the drafts would search them.
        PromptError: A file can't be read.
    """
    if paths and not any(name in ("lookup", "auto") or name.endswith(BESIDE) for name in draft_names):
        raise SettingsError(
            f"--lookup-file is for prompt lookup, and --draft {draft_names[0]} does not search it",
            "give --draft lookup" if draft_names[0] == "none" else f"give --draft {draft_names[0]}{BESIDE}",
        )
    return tuple(_read_text(path, "lookup") for path in paths or ())


def draft_length_from(text: str) -> tuple[int, DraftSchedule]:
    """Longest draft and schedule from `-k`.

    Raises:
        SettingsError: It is neither `auto` nor an integer in range.
    """
    if text == "auto":
        return LONGEST_AUTO_DRAFT, "auto"
    hint = f"give auto or an integer from 0 to {MAX_DRAFT_TOKENS}"
    try:
        length = int(text)
    except ValueError:
        raise SettingsError(f"--draft-tokens {text!r} is no draft length", hint) from None
    if not 0 <= length <= MAX_DRAFT_TOKENS:
        raise SettingsError(f"--draft-tokens {text} is out of range", hint)
    return length, "constant"


def build_request(
    pair: Pair,
    prompt: PromptOptions,
    sampling_options: SamplingOptions,
    max_new_tokens: int | None,
    draft_length: tuple[int, DraftSchedule],
    stops: tuple[str, ...],
    ignore_eos: bool,
    strict: bool,
) -> Request:
    """What the engine is asked for, out of what the user asked for.

    Raises:
        SettingsError: Options exclude each other.
        PromptError: The prompt is empty, or longer than the window.
        LoadError: The chat template refuses it, or takes too long.
    """
    from specgen.runtime.generation import Request

    ids = _prompt_ids(pair, prompt)
    sampling, source = sampling_options.resolve(pair.sampling_defaults)
    budget = pair.resolve_max_new_tokens(len(ids), max_new_tokens, DEFAULT_MAX_NEW_TOKENS)
    num_draft_tokens, schedule = draft_length
    end_ids = frozenset[int]() if ignore_eos else pair.end_ids
    limits = DecodeSettings(budget, num_draft_tokens, schedule, end_ids, strict)
    return Request(ids, limits, sampling, source, stops, prompt.is_raw)


def _prompt_ids(pair: Pair, prompt: PromptOptions) -> list[int]:
    from specgen.text.chat_template import ChatTemplate, Message, encode_text

    if prompt.is_raw:
        if prompt.system is not None:
            raise SettingsError("--system needs a chat template", "leave out --chat-template none")
        return encode_text(pair.tokenizer, prompt.text)
    messages = [] if prompt.system is None else [Message("system", prompt.system)]
    return ChatTemplate(template_source(prompt.template), prompt.template_options).encode(
        pair.tokenizer, [*messages, Message("user", prompt.text)]
    )


def template_source(choice: str) -> str | None:
    """Jinja source of `--chat-template FILE`; None for the model's own."""
    return None if choice == "auto" else _read_text(Path(choice), "template")


def system_message(text: str | None, path: Path | None) -> str | None:
    """The system message of two options that exclude each other.

    Raises:
        SettingsError: Both are given.
        PromptError: The file can't be read, or a text is no UTF-8.
    """
    if text is not None and path is not None:
        raise SettingsError("the system message is given twice, with --system and --system-file", "give one of them")
    if path is not None:
        return _read_text(path, "system")
    return None if text is None else as_utf8(text, "the system message")


def _read_text(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            return decode(read_capped(file, str(path)), str(path))
    except OSError as error:
        raise PromptError(f"can't read the {what} file {path}: {error.strerror or error}") from error


def template_options_from(text: str | None) -> dict[str, Any]:
    """Options of a chat template, out of a JSON object.

    Raises:
        SettingsError: It is no JSON object.
    """
    if text is None:
        return {}
    try:
        options = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"--chat-template-kwargs is not JSON: {error}", """quote it: '{"key": true}'""") from error
    if not isinstance(options, dict):
        raise SettingsError("--chat-template-kwargs is no JSON object", """give one: '{"key": true}'""")
    return options


def check_stops(stops: list[str]) -> None:
    """Refuse an empty stop text, which every text ends with.

    Raises:
        SettingsError: One is empty.
    """
    if "" in stops:
        raise SettingsError("--stop is empty", "give the text that ends the answer")
