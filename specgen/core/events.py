"""Defines the events of a generation as frozen values: token ids and seconds, and the same with text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from specgen.core.draft_tree import DraftTree

DraftSource = Literal["model", "lookup"]
FinishReason = Literal["stop", "length", "interrupted", "numerical", "memory", "error"]


@dataclass(frozen=True, slots=True)
class Prefill:
    """The prompt was read. `num_reused_tokens` of it were in the cache already, from an earlier turn."""

    num_prompt_tokens: int
    num_reused_tokens: int
    target_seconds: float
    draft_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of both models together."""
        return self.target_seconds + self.draft_seconds


@dataclass(frozen=True, slots=True)
class Round:
    """One draft-and-verify cycle, already cut at the first end token, stop string or token limit.

    Args:
        index: 0 for the first round.
        draft_ids: The draft, without tokens after an accepted end; of a tree, the accepted path and the best tokens
            after it.
        num_accepted: `draft_ids[:num_accepted]` were kept.
        target_id: The target's own token after them (correction or bonus); None if the draft ended the text.
        num_cut: Drafted tokens left out of `draft_ids` because the text ended before them.
        draft_seconds: Time inside the drafter.
        verify_seconds: Time inside the target's forward pass.
        other_seconds: The rest of the round: acceptance, cutting, rewinding.
        source: What made the draft; None if nothing was drafted.
        is_warmup: A pass of the round was recorded, or ran for the first time: later ones of its size are faster.
        num_replayed: Accepted tokens of earlier rounds that the target's pass fed again.
        tree: The whole draft, if it branches; it is not cut.
        num_passes: Passes of the draft model; None: one for each token.
        pass_rows: The tokens of each of these passes, if they are known. The first one reads the text's last token, and
            those before it that the draft model has not read.
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
    is_warmup: bool = False
    num_replayed: int = 0
    tree: DraftTree | None = None
    num_passes: int | None = None
    pass_rows: tuple[int, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens this round adds to the text, at least one."""
        accepted = self.draft_ids[: self.num_accepted]
        return accepted if self.target_id is None else (*accepted, self.target_id)

    @property
    def num_nodes(self) -> int:
        """Tokens of the whole draft: all branches, and those that were cut."""
        return len(self.draft_ids) + self.num_cut if self.tree is None else len(self.tree)

    @property
    def num_fed(self) -> int:
        """Tokens of the target's pass: the last one of the text, the draft, and those fed again."""
        return 1 + self.num_nodes + self.num_replayed

    @property
    def num_draft_passes(self) -> int:
        """Passes of a draft model, if the draft is a model's."""
        return len(self.draft_ids) + self.num_cut if self.num_passes is None else self.num_passes

    @property
    def tree_pass_rows(self) -> tuple[int, ...]:
        """Of a draft that branches, the tokens of each pass of the draft model; one for the pass that read text."""
        return (1, *self.pass_rows[1:]) if self.pass_rows and self.tree is not None else ()

    @property
    def num_rejected(self) -> int:
        """1 if a draft token was tested and rejected, else 0."""
        return int(self.num_accepted < len(self.draft_ids))

    @property
    def num_discarded(self) -> int:
        """Draft tokens after the rejected one; they were never tested."""
        return len(self.draft_ids) - self.num_accepted - self.num_rejected

    @property
    def seconds(self) -> float:
        """Seconds of the whole round: drafting, verifying and the rest."""
        return self.draft_seconds + self.verify_seconds + self.other_seconds


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for the user that does not stop the run, such as a dropped drafter."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a generation."""

    reason: FinishReason


Event = Prefill | Round | Notice | Finish


class TokenState(StrEnum):
    """The outcome of a token."""

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
    """One token as text. `text` is empty while a character is incomplete, and for special tokens."""

    id: int
    text: str
    state: TokenState


@dataclass(frozen=True, slots=True)
class RoundText:
    """A round as text. The kept pieces of all rounds plus the `FinalText` are the answer.

    Args:
        tree_texts: Text of each token of the round's tree, if its draft branched.
    """

    round: Round
    pieces: tuple[Piece, ...]
    tree_texts: tuple[str, ...] = ()

    @property
    def kept(self) -> str:
        """The text that this round adds to the answer."""
        return "".join(piece.text for piece in self.pieces if piece.state.is_kept)

    def text(self, *states: TokenState) -> str:
        """Returns the text of the pieces in the given states."""
        return "".join(piece.text for piece in self.pieces if piece.state in states)


@dataclass(frozen=True, slots=True)
class ServedText:
    """A piece of text that a server sent: a token, or several.

    Args:
        state: The outcome of its token; None if the server does not say.
        num_tokens: Its tokens; None if the server does not say.
    """

    text: str
    state: TokenState | None = None
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class FinalText:
    """The rest of the text (half a character, the possible start of a stop string) and the finish."""

    text: str
    finish: Finish


TextEvent = Prefill | RoundText | ServedText | Notice | FinalText
