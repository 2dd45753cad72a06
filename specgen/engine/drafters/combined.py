"""Combines prompt lookup with a draft model: each round uses the one with the larger expected gain.

A tree of the model's also has the tokens of matches as branches.
"""

from __future__ import annotations

from collections.abc import Sequence

from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.drafters.lookup import LookupDrafter, drafted
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.verification import Draft


class CombinedDrafter:
    """A draft model together with prompt lookup.

    The tokens of a match cost nothing to draft, but a wrong one wastes the round. So the policy compares the match, by
    its length and by how often such matches were right, with the gain of the model's recent rounds. Using lookup
    whenever there is a match was measured slower than the model alone.
    """

    def __init__(self, lookup: LookupDrafter, model: ModelDrafter) -> None:
        self.lookup = lookup
        self.model = model

    def feed(self, ids: Sequence[int]) -> None:
        self.lookup.feed(ids)
        self.model.feed(ids)

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        matches = self.lookup.matches(ids, limit)
        if matches:
            num_taken = draft_length.tokens_to_take(matches[0], has_draft_model=True)
            if num_taken:
                return drafted(matches[0], num_taken)
        if isinstance(draft_length, TreeLength):
            draft_length.note_matches(matches)
        return self.model.propose(ids, limit, draft_length)

    def rewind(self, length: int) -> None:
        self.lookup.rewind(length)
        self.model.rewind(length)

    def release(self) -> None:
        self.lookup.release()
        self.model.release()
