"""Checks and stores the settings of replies, from the options of a chat, `/set` and `/k`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from specgen.cli.chat.commands import closest_name
from specgen.cli.options.groups import SamplingOptions
from specgen.cli.request import parse_draft_length, parse_tree
from specgen.core.errors import SettingsError
from specgen.core.settings import DEFAULT_REPLY_TOKENS, ReplySettings, SamplingSettings
from specgen.storage.transcript import Scalar

_TYPES: dict[str, Callable[[str], float | int]] = {
    "temperature": float,
    "top-p": float,
    "min-p": float,
    "top-k": int,
    "repetition-penalty": float,
    "seed": int,
    "max-new-tokens": int,
}
SETTING_NAMES = tuple(_TYPES)
_DEFAULT_WORDS = ("default", "none", "auto")


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How replies are generated, as chosen by the user; None means the model's own value."""

    sampling: SamplingOptions
    max_new_tokens: int = DEFAULT_REPLY_TOKENS
    draft_tokens: str = "auto"
    """`auto` or an integer."""
    tree: str | None = None
    """`auto`, `off` or an integer; None: the default."""
    stops: tuple[str, ...] = ()
    strict: bool = False
    """A failing drafter is an error."""
    show_special_tokens: bool = False
    default_seed: int = field(default_factory=lambda: random.SystemRandom().randrange(2**31))
    """Used if the user gives no seed."""

    def with_value(self, name: str, text: str) -> ChatSettings:
        """Returns the settings with one of them changed; `default` restores the model's own value.

        Raises:
            SettingsError: The setting does not exist, or its value is invalid.
        """
        key = name.lower().replace("_", "-")
        value_type = _TYPES.get(key)
        if value_type is None:
            suggestion = closest_name(key, list(_TYPES))
            hint = f"did you mean {suggestion}?" if suggestion else f"choose from {', '.join(_TYPES)}"
            raise SettingsError(f"unknown setting {name}", hint)
        try:
            value = None if text.lower() in _DEFAULT_WORDS else value_type(text)
        except ValueError:
            expected = "an integer" if value_type is int else "a number"
            raise SettingsError(f"invalid {key} {text!r}", f"give {expected}, or default") from None
        if key == "max-new-tokens":
            changed = replace(self, max_new_tokens=DEFAULT_REPLY_TOKENS if value is None else int(value))
            if changed.max_new_tokens < 1:
                raise SettingsError(f"invalid max-new-tokens {text}", "give an integer of at least 1")
            return changed
        values: dict[str, Any] = {key.replace("-", "_"): value}
        sampling = replace(self.sampling, **values)
        sampling.resolve(None)  # checks the range
        return replace(self, sampling=sampling)

    def with_draft_tokens(self, text: str) -> ChatSettings:
        """Returns the settings with another draft length.

        Raises:
            SettingsError: It is neither `auto` nor an integer in range.
        """
        parse_draft_length(text)
        return replace(self, draft_tokens=text)

    def for_reply(self, defaults: SamplingSettings | None) -> ReplySettings:
        """Returns the settings of a reply, completed by the model's own values."""
        seed = self.default_seed if self.sampling.seed is None else self.sampling.seed
        # Randomness tied to positions lowers the acceptance rate a little: only a seed that was given is worth that.
        same_text = self.sampling.seed is not None if self.sampling.same_text is None else self.sampling.same_text
        sampling, source = replace(self.sampling, seed=seed, same_text=same_text).resolve(defaults)
        num_draft_tokens, schedule = parse_draft_length(self.draft_tokens)
        num_nodes, tree_schedule = parse_tree(self.tree)
        return ReplySettings(
            sampling,
            source,
            self.max_new_tokens,
            num_draft_tokens,
            schedule,
            num_nodes,
            tree_schedule,
            self.stops,
            self.strict,
            self.show_special_tokens,
        )

    def to_figures(self) -> dict[str, Scalar]:
        """Returns the settings for the session file, without values that the user did not give."""
        figures: dict[str, Scalar] = {"max-new-tokens": self.max_new_tokens, "draft-tokens": self.draft_tokens}
        if self.tree is not None:
            figures["tree"] = self.tree
        sampling = {name: getattr(self.sampling, name.replace("-", "_"), None) for name in SETTING_NAMES}
        return figures | {name: value for name, value in sampling.items() if value is not None}

    def with_saved(self, figures: Mapping[str, Scalar], *, keep_draft_tokens: bool) -> ChatSettings:
        """Returns the settings, completed by those of a saved session. Invalid saved values are ignored."""
        settings = self
        for name, value in figures.items():
            is_unset = getattr(self.sampling, name.replace("-", "_"), 0) is None
            if name == "max-new-tokens":
                is_unset = self.max_new_tokens == DEFAULT_REPLY_TOKENS
            with suppress(SettingsError):
                if name == "tree":
                    parse_tree(str(value))
                    settings = settings if self.tree is not None else replace(settings, tree=str(value))
                elif name == "draft-tokens" and not keep_draft_tokens:
                    settings = settings.with_draft_tokens(str(value))
                elif is_unset:
                    settings = settings.with_value(name, str(value))
        return settings
