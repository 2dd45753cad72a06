"""Times the passes of a draft model as its drafter makes them, with all that follows each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specgen.core.settings import SamplingSettings
from specgen.engine.clock import Clock
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.draft_length.tree_plan import Branching, Step
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.verification import Draft

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels

NUM_DRAFTED = 4
"""Draft tokens timed together: the first one of a draft also feeds what the draft model has not read yet."""
FEW_TOKENS = (2, 4, 8)
"""Sizes of the passes that are timed while they read text or continue trees, in tokens. One token is timed, too."""


@dataclass(frozen=True, slots=True)
class DraftSample:
    """What was timed once.

    Args:
        token_seconds: A pass of the draft model; for lookup, a proposal.
        reading_seconds: Additional cost of a draft's first token if the draft model reads n tokens before it, by n.
        tree_pass_seconds: A pass over n tokens of a tree, by n.
        cold_seconds: Additional cost of a draft's first token after a pass of the target.
    """

    token_seconds: float
    reading_seconds: Mapping[int, float] = field(default_factory=dict)
    tree_pass_seconds: Mapping[int, float] = field(default_factory=dict)
    cold_seconds: float = 0.0


class DraftTimer:
    """Times drafts after a text that target and draft model have read, but for its last token.

    Args:
        models: A draft and its target.
        ids: The text.
        sampling: How the draft chooses its tokens.
        read: Seconds.

    Raises:
        DraftError: The draft model failed.
    """

    def __init__(self, models: LoadedModels, ids: Sequence[int], sampling: SamplingSettings, read: Clock) -> None:
        models.limit_torch_threads()
        drafter = models.drafter(models.sampler(sampling))
        self._drafter = drafter.model if isinstance(drafter, CombinedDrafter) else drafter
        self._has_model, self._target = models.draft is not None, models.target
        self._ids, self._read = list(ids), read
        self._drafter.feed(ids[:-1])

    def sample(self, num_tree_nodes: int = 0) -> DraftSample:
        """Times drafts once.

        Args:
            num_tree_nodes: Most tokens of a tree; 0: drafts don't branch.
        """
        ids = self._ids
        if not self._has_model:
            return DraftSample(self._timed(len(ids) - 1, NUM_DRAFTED, _MeasuredLength())[0])
        cold_seconds = self._seconds_after_target()
        seconds, draft = self._timed(len(ids) - 1, NUM_DRAFTED, _MeasuredLength())
        # A draft with another vocabulary may take more passes than it proposes tokens.
        num_passes = draft.ids.shape[0] if draft.num_passes is None else draft.num_passes
        first = {n: self._timed(len(ids) - n, 1, _MeasuredLength())[0] for n in (1, *FEW_TOKENS) if n <= len(ids)}
        reading = {n: seconds_of_n - first[1] for n, seconds_of_n in first.items()}
        by_rows = self._tree_passes(num_tree_nodes) if num_tree_nodes else {}
        self._drafter.rewind(len(ids) - 1)
        return DraftSample(seconds / max(num_passes, 1), reading, by_rows, cold_seconds - first[1])

    def _seconds_after_target(self) -> float:
        """Returns the seconds of a token after a pass of the target, whose weights the processor's caches hold then."""
        self._target.logits(self._ids, 1)
        self._target.rewind(len(self._ids) - 1)
        return self._timed(len(self._ids) - 1, 1, _MeasuredLength())[0]

    def _tree_passes(self, num_nodes: int) -> dict[int, float]:
        """Returns the seconds of a pass by its rows; nothing if drafts don't branch."""
        found: dict[int, float] = {}
        for rows in (1, *(rows for rows in FEW_TOKENS if rows <= num_nodes)):
            seconds, draft = self._timed(len(self._ids) - 1, NUM_DRAFTED, _MeasuredTree(rows))
            first, *further = draft.pass_rows or (0,)
            # A token with few likely successors leaves fewer rows than wanted.
            if further == [rows] * (NUM_DRAFTED - 1) and first == 1:
                found[rows] = (seconds - found[1]) / len(further) if rows > 1 else seconds / NUM_DRAFTED
            if 1 not in found:
                break
        return found

    def _timed(self, num_fed: int, limit: int, policy: LengthPolicy) -> tuple[float, Draft]:
        """Returns the seconds of a draft of a model that has read `num_fed` tokens, and the draft."""
        self._drafter.rewind(num_fed)
        self._drafter.feed(self._ids[:num_fed])
        started = self._read()
        draft = self._drafter.propose(self._ids, limit, policy)
        return self._read() - started, draft


class _MeasuredLength(FixedLength):
    """Drafts the wanted number of tokens and computes their confidences, as `-k auto` does."""

    uses_confidence = True


class _MeasuredTree(TreeLength):
    """Feeds the same number of tokens in each pass after the first one, and proposes them.

    Args:
        num_rows: Of a pass.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self._num_rows = num_rows

    def next_tokens(self, branchings: Sequence[Branching], num_drafted: int, depth: int) -> Step:
        if num_drafted >= self._num_rows * (NUM_DRAFTED - 1):
            return Step([], is_fed=False)
        # The latest ones first: as in a real draft, rows see each other.
        latest = [(at, b) for at, b in reversed([*enumerate(branchings)]) if b.depth < depth]
        free = [at for at, branching in latest for _ in branching.shares[branching.num_taken :]]
        return Step(free[: self._num_rows], is_fed=bool(free))
