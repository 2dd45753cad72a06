"""What `/set`, `/k` and the options of a chat decide about replies: names and values in, checked settings out."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from specgen.cli.chat.commands import nearest
from specgen.cli.request import SamplingOptions, draft_length_from
from specgen.core.errors import SettingsError
from specgen.core.settings import SamplingSettings
from specgen.storage.transcript import Scalar

if TYPE_CHECKING:
    from specgen.runtime.conversation import ReplySettings

DEFAULT_MAX_NEW_TOKENS = 1024

_KINDS: dict[str, Callable[[str], float | int]] = {
    "temperature": float,
    "top-p": float,
    "min-p": float,
    "top-k": int,
    "repetition-penalty": float,
    "seed": int,
    "max-new-tokens": int,
}
SETTING_NAMES = tuple(_KINDS)
_UNSET = ("default", "none", "auto")


def _draw_seed() -> int:
    return random.SystemRandom().randrange(2**31)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How replies are made, as far as the user decided; None means the model's own.

    Args:
        sampling: As given.
        max_new_tokens: Longest reply.
        draft_tokens: `auto` or a number.
        stops: Stop strings.
        strict: A failing drafter is an error.
        drawn_seed: Used where none was given.
    """

    sampling: SamplingOptions
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    draft_tokens: str = "auto"
    stops: tuple[str, ...] = ()
    strict: bool = False
    drawn_seed: int = field(default_factory=_draw_seed)

    def with_value(self, name: str, text: str) -> ChatSettings:
        """One setting changed; `default` gives a sampling setting back to the model.

        Raises:
            SettingsError: No such setting, or a value out of its range.
        """
        key = name.lower().replace("_", "-")
        kind = _KINDS.get(key)
        if kind is None:
            near = nearest(key, list(_KINDS))
            known = ", ".join(_KINDS)
            raise SettingsError(
                f"there is no setting {name}", f"did you mean {near}?" if near else f"there are {known}"
            )
        value: float | int | None = None
        if text.lower() not in _UNSET:
            try:
                value = kind(text)
            except ValueError:
                wanted = "an integer" if kind is int else "a number"
                raise SettingsError(f"{key} {text} is no number", f"give {wanted}, or default") from None
        if key == "max-new-tokens":
            changed = replace(self, max_new_tokens=DEFAULT_MAX_NEW_TOKENS if value is None else int(value))
            if changed.max_new_tokens < 1:
                raise SettingsError(f"max-new-tokens {text} is out of range", "give an integer >= 1")
            return changed
        values: dict[str, Any] = {key.replace("-", "_"): value}
        changed = replace(self, sampling=replace(self.sampling, **values))
        changed.sampling.resolve(None)  # checks the range
        return changed

    def with_draft_tokens(self, text: str) -> ChatSettings:
        """Another longest draft.

        Raises:
            SettingsError: It is neither `auto` nor in range.
        """
        draft_length_from(text)
        return replace(self, draft_tokens=text)

    def for_reply(self, defaults: SamplingSettings | None) -> ReplySettings:
        """Settings of a reply, the model's own filled in."""
        from specgen.runtime.conversation import ReplySettings

        seed = self.drawn_seed if self.sampling.seed is None else self.sampling.seed
        # Chance that is tied to positions accepts a little less; only a seed somebody chose is worth that.
        same_text = self.sampling.seed is not None if self.sampling.same_text is None else self.sampling.same_text
        sampling, source = replace(self.sampling, seed=seed, same_text=same_text).resolve(defaults)
        num_draft_tokens, schedule = draft_length_from(self.draft_tokens)
        return ReplySettings(
            sampling, source, self.max_new_tokens, num_draft_tokens, schedule, stops=self.stops, strict=self.strict
        )

    def to_figures(self) -> dict[str, Scalar]:
        """For the session file: what was given, and nothing that was not."""
        figures: dict[str, Scalar] = {"max-new-tokens": self.max_new_tokens, "draft-tokens": self.draft_tokens}
        for name in SETTING_NAMES:
            value = getattr(self.sampling, name.replace("-", "_"), None)
            if value is not None:
                figures[name] = value
        return figures

    def with_saved(self, figures: Mapping[str, Scalar], *, keep_draft_tokens: bool) -> ChatSettings:
        """Take over what a saved session had, where nothing was given now. Values that are not ours are left out."""
        settings = self
        for name, value in figures.items():
            is_open = getattr(self.sampling, name.replace("-", "_"), 0) is None
            if name == "max-new-tokens":
                is_open = self.max_new_tokens == DEFAULT_MAX_NEW_TOKENS
            with suppress(SettingsError):
                if name == "draft-tokens" and not keep_draft_tokens:
                    settings = settings.with_draft_tokens(str(value))
                elif is_open:
                    settings = settings.with_value(name, str(value))
        return settings
