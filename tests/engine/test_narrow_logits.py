"""A draft may return logits of its first ids only: it drafts as if the others had probability zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from specgen.core.settings import SamplingSettings
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.drafters.model import MaskedDrafter, ModelDrafter
from specgen.engine.drafters.translated import SharedTokenDrafter, TranslatedModel
from specgen.engine.drafters.tree import TreeDrafter
from specgen.engine.enumeration import TableModel
from specgen.engine.sampling import Sampler
from tests.engine.test_enumeration import PROMPT, table
from tests.engine.translations import StringTranslation
from tests.fakes import CPU, rounds_of, run_events

SIZE, WIDTH = 6, 3
MASKED = torch.tensor([1, 5])
SAMPLINGS = {
    "greedy": SamplingSettings(temperature=0.0),
    "penalty": SamplingSettings(temperature=0.0, repetition_penalty=1.5),
    "sampled": SamplingSettings(temperature=0.9, top_k=3, repetition_penalty=1.5),
    "same text": SamplingSettings(temperature=0.9, same_text=True),
}


class NarrowModel(TableModel):
    """Leaves out the last ids."""

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        return super().logits(ids, num_last, tail)[:, :WIDTH]

    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        return super().tree_logits(tokens, parents)[:, :WIDTH]


def shared(model: TableModel, own: Sampler) -> ModelDrafter:
    tokens = list("abcdef")
    translation = StringTranslation(tokens, tokens[::-1])
    return SharedTokenDrafter(TranslatedModel(model, translation, translation.shared), SIZE, own)


MAKERS: dict[str, tuple[Callable[[TableModel, Sampler], ModelDrafter], Callable[[], LengthPolicy]]] = {
    "chain": (lambda model, own: ModelDrafter(model, SIZE, own), FixedLength),
    "tree": (lambda model, own: TreeDrafter(model, SIZE, own), lambda: TreeLength(4, None, is_fixed=False)),
    "masked": (lambda model, own: MaskedDrafter(model, SIZE, own, None, MASKED), FixedLength),
    "shared": (shared, FixedLength),
}


def drafted(model: TableModel, kind: str, sampling: SamplingSettings) -> list[tuple[object, ...]]:
    """Returns what was drafted and accepted in each round of an answer."""
    make, policy = MAKERS[kind]
    own = Sampler.seeded(sampling, CPU, SIZE)
    options = {"sampling": sampling, "randomness": own.randomness, "noise": own.noise, "draft_length": policy()}
    events = run_events(TableModel(table(SIZE, 1)), make(model, own), PROMPT, max_new_tokens=40, **options)
    return [(one.draft_ids, one.tree, one.num_accepted, one.target_id) for one in rounds_of(events)]


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.fast(without=("shared-penalty", "masked-penalty", "tree-penalty", "shared-greedy", "*-same text"))
def test_left_out_ids_have_probability_zero(kind: str, sampling: SamplingSettings) -> None:
    logits = table(SIZE, 3)
    excluded = logits.clone()
    excluded[:, WIDTH:] = -torch.inf

    narrow, wide = (drafted(model, kind, sampling) for model in (NarrowModel(logits), TableModel(excluded)))

    assert narrow == wide
    assert any(draft_ids for draft_ids, *_ in narrow)
    assert drafted(TableModel(logits), kind, sampling) != wide, "the left-out ids would be drafted"
