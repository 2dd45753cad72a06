"""What happens during a generation, as frozen values: ids and seconds, and the same for people. No imports of ours."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

DraftSource = Literal["model", "lookup"]
FinishReason = Literal["stop", "length", "interrupted", "numerical", "memory", "error"]


@dataclass(frozen=True, slots=True)
class Prefill:
    """The prompt is in the caches.

    `num_reused_tokens` of the prompt were there already, from an earlier turn.
    """

    num_prompt_tokens: int
    num_reused_tokens: int
    target_seconds: float
    draft_seconds: float

    @property
    def seconds(self) -> float:
        """Both models together."""
        return self.target_seconds + self.draft_seconds


@dataclass(frozen=True, slots=True)
class Round:
    """One draft-and-verify cycle, cut at the first end token, stop string and the budget before anything else saw it.

    Args:
        index: 0 for the first round.
        draft_ids: What was proposed and counts. Drafted tokens behind an accepted end are not in it.
        num_accepted: `draft_ids[:num_accepted]` were kept.
        target_id: The target's own token after them (correction or bonus); None if the draft ended the text.
        num_cut: Drafted tokens left out of `draft_ids` because the text ended before them.
        draft_seconds: Time inside the drafter.
        verify_seconds: Time inside the target's forward pass.
        other_seconds: The rest of the round: acceptance, cutting, rewinding.
        source: What drafted; None if nothing was drafted.
    """

    index: int
    draft_ids: tuple[int, ...]
    num_accepted: int
    target_id: int | None
    num_cut: int
    draft_seconds: float
    verify_seconds: float
    other_seconds: float
    source: DraftSource | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens this round adds to the text, at least one."""
        accepted = self.draft_ids[: self.num_accepted]
        return accepted if self.target_id is None else (*accepted, self.target_id)

    @property
    def num_rejected(self) -> int:
        """1 if a draft token was tested and refused, else 0."""
        return int(self.num_accepted < len(self.draft_ids))

    @property
    def num_discarded(self) -> int:
        """Draft tokens behind the refused one, never tested."""
        return len(self.draft_ids) - self.num_accepted - self.num_rejected

    @property
    def seconds(self) -> float:
        """The whole round: drafting, verifying and the rest."""
        return self.draft_seconds + self.verify_seconds + self.other_seconds


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know that does not stop the run (a drafter that had to be dropped)."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a generation."""

    reason: FinishReason


Event = Prefill | Round | Notice | Finish


class TokenState(StrEnum):
    """What became of a token."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DISCARDED = "discarded"
    CORRECTION = "correction"
    BONUS = "bonus"
    TARGET = "target"
    """The target's own token in a round that drafted nothing."""

    @property
    def is_kept(self) -> bool:
        """Whether the token is part of the text."""
        return self not in (TokenState.REJECTED, TokenState.DISCARDED)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token as text. `text` may be empty while the bytes of a character are incomplete, or for a special token."""

    id: int
    text: str
    state: TokenState


@dataclass(frozen=True, slots=True)
class RoundText:
    """A round for people. The texts of the kept pieces of all rounds, plus the final flush, are the answer."""

    round: Round
    pieces: tuple[Piece, ...]

    @property
    def kept(self) -> str:
        """Text this round adds to the answer."""
        return "".join(piece.text for piece in self.pieces if piece.state.is_kept)

    def text(self, *states: TokenState) -> str:
        """Text of the pieces in the given states."""
        return "".join(piece.text for piece in self.pieces if piece.state in states)


@dataclass(frozen=True, slots=True)
class FinalText:
    """Text held back to the end (half a character, the possible beginning of a stop string), then the finish."""

    text: str
    finish: Finish


TextEvent = Prefill | RoundText | Notice | FinalText
