"""Reads a value of `--draft`. Nothing else takes such a name apart. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DrafterKind = Literal["auto", "model", "lookup", "model+lookup", "none"]
"""`auto`: the draft that comes with specgen or with the target together with lookup, if there is one, else lookup."""

MTP_NAME = "mtp"
"""The value of `--draft` for the multi-token-prediction head in the target's checkpoint."""
DRAFT_WORDS = ("lookup", MTP_NAME, "none", "auto")
"""Values of `--draft` that are not names of models."""
LOOKUP_SUFFIX = "+lookup"
"""After the name of a draft model: prompt lookup drafts as well, in the rounds where it is expected to gain more."""


@dataclass(frozen=True, slots=True)
class DraftName:
    """A value of `--draft`.

    Args:
        text: As it was given.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def kind(self) -> DrafterKind:
        """What drafts."""
        name = self.text.removesuffix(LOOKUP_SUFFIX)
        if name in ("auto", "lookup"):
            return "auto" if name == "auto" else "lookup"
        if self.text == "none":
            return "none"
        return "model" if name == self.text else "model+lookup"

    @property
    def model(self) -> str | None:
        """The name of the draft model, which may be `mtp`; None if no model is named."""
        return self.text.removesuffix(LOOKUP_SUFFIX) if self.kind in ("model", "model+lookup") else None

    @property
    def has_lookup(self) -> bool:
        """Whether prompt lookup drafts, alone or with a model."""
        return self.kind in ("auto", "lookup", "model+lookup")


AUTO_DRAFT, LOOKUP, NO_DRAFT = DraftName("auto"), DraftName("lookup"), DraftName("none")
