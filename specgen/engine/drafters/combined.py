"""Two drafters as one: each round goes to lookup or to the draft model, whichever is expected to bring more."""

from __future__ import annotations

from collections.abc import Sequence

from specgen.engine.draft_length.policy import LengthPolicy
from specgen.engine.drafters.lookup import LookupDrafter, drafted
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.verification import Draft


class CombinedDrafter:
    """A draft model with prompt lookup beside it.

    The tokens of a match cost nothing to draft, but a wrong one wastes the round: so the policy weighs the match, by
    its length and by what became of such matches before, against what the model's rounds brought. Lookup first,
    whenever there is a match, was measured slower than the model alone.
    """

    def __init__(self, lookup: LookupDrafter, model: ModelDrafter) -> None:
        self.lookup = lookup
        self.model = model

    def feed(self, ids: Sequence[int]) -> None:
        self.lookup.feed(ids)
        self.model.feed(ids)

    def propose(self, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        match = self.lookup.match(ids, limit)
        if match is not None:
            num_taken = lengths.tokens_to_take(match, has_draft_model=True)
            if num_taken:
                return drafted(match, num_taken)
        return self.model.propose(ids, limit, lengths)

    def rewind(self, length: int) -> None:
        self.lookup.rewind(length)
        self.model.rewind(length)
