"""Combines prompt lookup with a draft model: each round uses the one with the larger expected gain."""

from __future__ import annotations

from collections.abc import Sequence

from specgen.engine.draft_length.contract import LengthPolicy
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
        match = self.lookup.match(ids, limit)
        if match is not None:
            num_taken = draft_length.tokens_to_take(match, has_draft_model=True)
            if num_taken:
                return drafted(match, num_taken)
        return self.model.propose(ids, limit, draft_length)

    def rewind(self, length: int) -> None:
        self.lookup.rewind(length)
        self.model.rewind(length)

    def release(self) -> None:
        self.lookup.release()
        self.model.release()
